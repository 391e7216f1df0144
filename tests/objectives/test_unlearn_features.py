"""RMU: the control vector, both terms by hand, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import WIDTH, text_batch
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case

from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.objectives.combinators import add, on
from kd_jax.objectives.unlearn.features import feature_retention, misdirection
from kd_jax.steps import make_train_step
from kd_jax.trees import flatten
from kd_jax.types import Context


def rmu(model):
    return add(
        {
            "forget": on("forget", misdirection(model, "block_0", coefficient=2.0)),
            "retain": on("retain", feature_retention(model, "block_0")),
        }
    )


CASES = {"rmu": Case(rmu, ("forget", "retain"))}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def test_the_control_vector_is_positive_fixed_and_of_the_given_length():
    batch = text_batch()
    objective = misdirection(MODEL, "block_0", coefficient=2.0)
    control = objective.init(KEY, PARAMS, FROZEN, batch)[1]["control"]
    assert control.shape == (WIDTH,) and np.all(control > 0)
    np.testing.assert_allclose(jnp.linalg.norm(control), 2.0, rtol=1e-6)
    r = np.asarray(jax.random.uniform(KEY, (WIDTH,)), np.float64)
    np.testing.assert_allclose(control, 2 * r / np.sqrt((r**2).sum()), rtol=1e-5)
    other = objective.init(jax.random.key(5), PARAMS, FROZEN, batch)[1]["control"]
    assert np.abs(control - other).max() > 1e-2
    step = make_train_step(objective, optax.sgd(0.5))
    start = step.init(KEY, PARAMS, FROZEN, batch)
    state, _ = jax.jit(step.apply)(start, FROZEN, batch)
    np.testing.assert_array_equal(state.carry["control"], start.carry["control"])


def test_both_terms_by_hand():
    """The mean over sequences of the mean over tokens, whose counts are 1, 2, 3 and 4."""
    batch = {"forget": text_batch(), "retain": text_batch(seed=1)}
    step = make_train_step(rmu(MODEL), optax.sgd(0.5))
    state = step.init(KEY, PARAMS, FROZEN, batch)
    _, metrics = jax.jit(step.apply)(state, FROZEN, batch)

    def states(params, part):
        return np.asarray(params["embedding"], np.float64)[np.asarray(part["inputs"])]

    def mean(squares, part):
        w = np.asarray(part["weights"], np.float64)
        return ((squares.mean(-1) * w).sum(1) / w.sum(1)).mean()

    h = states(PARAMS, batch["forget"])
    control = np.asarray(state.carry["forget"]["control"], np.float64)
    np.testing.assert_allclose(
        metrics["forget/misdirection"], mean((h - control) ** 2, batch["forget"]), rtol=1e-5
    )
    h = states(PARAMS, batch["retain"])
    reference = states(FROZEN["reference"], batch["retain"])
    np.testing.assert_allclose(
        metrics["retain/retention"], mean((h - reference) ** 2, batch["retain"]), rtol=1e-5
    )


def test_retention_is_zero_at_the_reference_and_misdirection_where_the_states_are_the_control():
    batch = text_batch()
    objective = feature_retention(MODEL, "block_0")
    at_reference = {"model": FROZEN["reference"], "aux": {}}
    ctx = Context(KEY, jnp.int32(0))
    assert objective.loss(at_reference, {}, FROZEN, batch, ctx).loss == 0
    objective = misdirection(MODEL, "block_0", coefficient=2.0)
    _, carry = objective.init(KEY, PARAMS, FROZEN, batch)
    there = PARAMS | {"embedding": jnp.broadcast_to(carry["control"], PARAMS["embedding"].shape)}
    output = objective.loss({"model": there, "aux": {}}, carry, FROZEN, batch, ctx)
    assert output.loss == 0
    np.testing.assert_allclose(output.metrics["norm"].value, 2.0, rtol=1e-6)


@pytest.mark.slow
def test_layers_above_the_place_get_no_gradient():
    config = DecoderConfig(
        vocab=7, width=8, depth=3, heads=2, kv_heads=1, head_dim=4, mlp=8, scan=False, remat=False
    )
    model, batch = decoder(config), text_batch()
    params = model.init(jax.random.key(2))
    frozen = {"reference": jax.tree.map(lambda x: 1.1 * x, params)}
    parts = {"forget": batch, "retain": batch}
    objective = add(
        {
            "forget": on("forget", misdirection(model, "block_1", coefficient=2.0)),
            "retain": on("retain", feature_retention(model, "block_1")),
        }
    )
    aux, carry = objective.init(KEY, params, frozen, parts)

    def loss(params):
        whole = {"model": params, "aux": aux}
        return objective.loss(whole, carry, frozen, parts, Context(KEY, jnp.int32(0))).loss

    grads = flatten(jax.jit(jax.grad(loss))(params))
    moved = {path for path, g in grads.items() if np.any(g != 0)}
    below = {p for p in grads if p.startswith(("layers/0/", "layers/1/", "embed"))}
    assert moved == below


def test_an_unknown_place_is_named():
    with pytest.raises((ValueError, KeyError), match="block_9"):
        misdirection(MODEL, "block_9", coefficient=1.0).init(KEY, PARAMS, FROZEN, text_batch())
