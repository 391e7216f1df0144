"""A student that learns its teacher's hidden states and attention, through taps of decoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import assert_trees_close

from kd_jax.losses.relations import relation_kl
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.objectives.distil import distil, hint, relations
from kd_jax.steps import make_train_step
from kd_jax.types import Context

BIG = DecoderConfig(
    vocab=16, width=12, depth=3, heads=2, kv_heads=1, head_dim=6, mlp=16, remat=False
)
SMALL = dataclasses.replace(BIG, width=8, depth=2, heads=2, kv_heads=2, head_dim=4, scan=False)
STUDENT, TEACHER = decoder(SMALL), decoder(BIG)
PARAMS, FROZEN = STUDENT.init(jax.random.key(0)), {"teacher": TEACHER.init(jax.random.key(1))}
KEY = jax.random.key(2)
OBJECTIVE = distil(
    STUDENT,
    TEACHER,
    {"hidden": hint("block_1", "block_2", 0.5), "attention": relations(1, 2, heads=2)},
)


def batch(rows=4, length=6):
    ids = np.random.default_rng(0).integers(0, 16, (rows, length + 1))
    place = np.arange(length)
    weights = (place > 0) & (place < 2 + np.arange(rows)[:, None])
    return {
        "inputs": jnp.asarray(ids[:, :-1], jnp.int32),
        "targets": jnp.asarray(ids[:, 1:], jnp.int32),
        "weights": jnp.asarray(weights, jnp.float32),
        "index": jnp.arange(rows, dtype=jnp.int32),
    }


def one_step(batch, microbatches=1):
    step = make_train_step(OBJECTIVE, optax.sgd(0.1), microbatches=microbatches)
    return step(step.init(KEY, PARAMS, FROZEN, batch), FROZEN, batch)


@pytest.mark.slow
def test_values_are_means_over_weighed_tokens():
    given = batch()
    aux, carry = OBJECTIVE.init(KEY, PARAMS, FROZEN, given)
    output = OBJECTIVE.loss(
        {"model": PARAMS, "aux": aux}, carry, FROZEN, given, Context(KEY, jnp.int32(0))
    )
    kinds = ("query", "key", "value")
    ours = STUDENT.apply(PARAMS, given, taps=("block_1", *(f"{k}_1" for k in kinds))).taps
    theirs = TEACHER.apply(
        FROZEN["teacher"], given, taps=("block_2", *(f"{k}_2" for k in kinds))
    ).taps
    guess = ours["block_1"] @ aux["hidden"]["kernel"] + aux["hidden"]["bias"][None, None]
    weights = given["weights"]

    def mean(x):
        return (x * weights).sum() / weights.sum()

    hidden = mean(jnp.square(guess - theirs["block_2"]).mean(-1))
    np.testing.assert_allclose(output.terms["hidden"].value, 0.5 * hidden, rtol=1e-5)
    parts = [relation_kl(ours[f"{k}_1"], theirs[f"{k}_2"], heads=2) for k in kinds]
    np.testing.assert_allclose(output.terms["attention"].value, mean(sum(parts) / 3), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_taps_of_attention(layout):
    """Values are those of the projection; queries and keys make the scores that attention makes."""
    config = dataclasses.replace(BIG, scan=layout == "scan")
    model = decoder(config)
    params = model.init(jax.random.key(3))
    names = ("query_1", "key_1", "value_1", "block_0")
    taps = jax.jit(lambda p: model.apply(p, batch(), taps=names).taps)(params)
    assert taps["query_1"].shape == (4, 6, 2, 6) and taps["key_1"].shape == (4, 6, 1, 6)
    layers = params["layers"]
    layer = jax.tree.map(lambda x: x[1], layers) if config.scan else layers["1"]
    stream = taps["block_0"]
    normed = stream / jnp.sqrt(jnp.square(stream).mean(-1, keepdims=True) + config.norm_eps)
    value = normed @ layer["attn"]["v"]["kernel"]
    np.testing.assert_allclose(taps["value_1"][:, :, 0], value, rtol=1e-4, atol=1e-5)
    # A rotation leaves lengths, and turns nothing at the first position.
    query = (normed @ layer["attn"]["q"]["kernel"]).reshape(4, 6, 2, 6)
    np.testing.assert_allclose(taps["query_1"][:, 0], query[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jnp.square(taps["query_1"]).sum(-1), jnp.square(query).sum(-1), rtol=1e-4, atol=1e-5
    )
    assert np.abs(taps["query_1"][:, 1] - query[:, 1]).max() > 1e-3


@pytest.mark.slow
def test_padding_and_prompts_move_nothing_and_weighed_tokens_do():
    given = batch()
    want = one_step(given)
    ends = np.asarray(given["weights"]).cumsum(1).argmax(1)
    place = np.arange(6)[None]
    behind = place > ends[:, None]
    spoilt = given | {"inputs": jnp.where(behind, 15, given["inputs"])}
    assert_trees_close(one_step(spoilt), want)
    moved = given | {"inputs": given["inputs"].at[0, 1].add(1) % 16}
    assert abs(float(one_step(moved)[1]["loss"]) - float(want[1]["loss"])) > 1e-4


@pytest.mark.slow
def test_microbatches_change_nothing():
    assert_trees_close(one_step(batch(), 2), one_step(batch()))


@pytest.mark.slow
def test_both_losses_fall():
    given = batch()
    step = make_train_step(OBJECTIVE, optax.adam(1e-2))
    state, run = step.init(KEY, PARAMS, FROZEN, given), jax.jit(step.apply)
    found = []
    for _ in range(30):
        state, metrics = run(state, FROZEN, given)
        found.append((float(metrics["hidden"]), float(metrics["attention"])))
    assert found[-1][0] < 0.7 * found[0][0] and found[-1][1] < 0.7 * found[0][1]
