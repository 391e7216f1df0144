"""Trainings side by side: each as it would be alone, whatever platform writes them out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close, batch_of, linear_model

from kd_jax.data import sources
from kd_jax.repetition import batched, repeated, repeated_prepare, side_by_side
from kd_jax.steps import guard_non_finite, make_train_step
from kd_jax.types import Objective, Output, TrainState, weighted_sum

MODEL = linear_model()
COUNT = 3
KEYS = jax.random.split(jax.random.key(0), COUNT)
FROZEN = {"goal": jnp.float32(0.5), "own": jnp.arange(COUNT, dtype=jnp.float32)}


def loss(params, carry, frozen, batch, ctx):
    """It reads all that a training has: rows, both kinds of frozen, the key, the carry, aux."""
    noise = jax.random.normal(ctx.key, batch["weights"].shape)
    z = MODEL.apply(params["model"], batch).head.logits()[:, 0] + params["aux"] + carry
    error = z - frozen["goal"] - frozen["own"] + 0.1 * noise
    return Output({"error": weighted_sum(error**2, batch["weights"])})


OBJECTIVE = Objective(
    lambda key, params, frozen, batch: (jax.random.normal(key), frozen["own"]),
    loss,
    lambda carry, new, frozen, output, ctx: carry + 1.0,
)
STEP = make_train_step(OBJECTIVE, optax.adam(0.1))
BATCHES = [jax.tree.map(lambda x, s=s: np.roll(x, s, 0), batch_of(8)) for s in range(COUNT)]
ABREAST = {name: np.stack([b[name] for b in BATCHES], 1) for name in BATCHES[0]}
PARAMS = jax.vmap(MODEL.init)(KEYS)


def alone(number, steps=2):
    key = jax.random.fold_in(jax.random.key(7), number)
    frozen = FROZEN | {"own": FROZEN["own"][number]}
    state = STEP.init(key, MODEL.init(KEYS[number]), frozen, BATCHES[number])
    # It is given the key that it has abreast, not the one that init drew.
    metrics = {}
    for _ in range(steps):
        state = state._replace(key=jax.random.fold_in(jax.random.key(7), number))
        state, metrics = jax.jit(STEP)(state, frozen, BATCHES[number])
    return state, metrics


def abreast(step, steps=2, batch=ABREAST):
    state = step.init(jax.random.key(7), PARAMS, FROZEN, batch)
    metrics = {}
    for _ in range(steps):
        state, metrics = jax.jit(step)(state, FROZEN, batch)
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("over", [side_by_side, batched])
def test_each_training_is_as_it_would_be_alone(over):
    state, metrics = abreast(repeated(STEP, COUNT, own=("own",), over=over))
    each = [alone(number) for number in range(COUNT)]
    for number, (one, _) in enumerate(each):
        got = (state.params, state.opt_state, state.carry)
        mine = jax.tree.map(lambda x, i=number: x[i], got)
        assert_trees_close(mine, (one.params, one.opt_state, one.carry))
    assert int(state.step) == 2 and state.step.shape == ()
    means = jax.tree.map(lambda *x: np.mean(x), *[metrics for _, metrics in each])
    assert_trees_close(metrics, means)
    assert len({float(x) for x in state.params["aux"]}) == COUNT


def test_platforms_write_the_same_trainings_out_in_their_own_way():
    """CPUs one after the other, the others by vmap: the same numbers."""

    def f(x, tree):
        return {"sum": (x @ x).sum() + tree["y"], "x": x}

    args = (jax.random.normal(jax.random.key(1), (4, 3, 3)), {"y": jnp.arange(4.0)})
    here = jax.jit(side_by_side(f, 4))
    assert_trees_close(here(*args), jax.vmap(f)(*args))
    written, mapped = (
        here.trace(*args).lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")
    )
    assert written.count("dot_general") == 4
    assert mapped.count("dot_general") == 1


@pytest.mark.slow
def test_rows_may_lie_on_many_devices():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    placed = jax.tree.map(lambda x: jax.device_put(x, rows), ABREAST)
    step = repeated(STEP, COUNT, own=("own",))
    state = abreast(step)[0]
    spread = abreast(step, batch=placed)[0]
    # Keys are compared by what they drew.
    assert_trees_close(state.params, spread.params)


def test_one_bad_training_stops_all():
    step = guard_non_finite(repeated(STEP, COUNT, own=("own",)))
    bad = ABREAST | {"inputs": ABREAST["inputs"].copy()}
    bad["inputs"][:, 1] = np.nan
    state, metrics = abreast(step, steps=1, batch=bad)
    assert int(metrics["first_bad_step"]) == 0
    np.testing.assert_array_equal(state.params["model"]["kernel"], PARAMS["kernel"])


def test_unknown_entries_of_frozen_are_refused_by_name():
    with pytest.raises(ValueError, match="own: got nobody, takes some of goal, own"):
        abreast(repeated(STEP, COUNT, own=("nobody",)))


def test_prepare_sees_one_training_at_a_time():
    def prepare(state, frozen, batch):
        drawn = jax.random.normal(jax.random.fold_in(state.key, state.step))
        return batch | {"drawn": batch["weights"] * drawn + state.carry}

    state = repeated(STEP, COUNT, own=("own",)).init(jax.random.key(7), PARAMS, FROZEN, ABREAST)
    found = jax.jit(repeated_prepare(prepare, COUNT))(state, FROZEN, ABREAST)
    for number in range(COUNT):
        one = TrainState(
            jnp.int32(0), {}, {}, FROZEN["own"][number],
            jax.random.fold_in(jax.random.key(7), number),
        )  # fmt: skip
        expected = prepare(one, FROZEN, BATCHES[number])
        assert_trees_close(jax.tree.map(lambda x, i=number: x[:, i], found), expected)


def test_sources_lie_side_by_side():
    arrays = {"inputs": np.arange(12.0), "weights": np.ones(12, np.float32)}
    each = [sources.array_batches(arrays, seed=s, name="x", batch_size=4) for s in range(2)]
    batch = sources.abreast(each)(1, slice(1, 3))
    for seed, source in enumerate(each):
        one = source(1, slice(1, 3))
        assert batch.keys() == one.keys()
        for name, x in one.items():
            np.testing.assert_array_equal(batch[name][:, seed], x)
    assert not (batch["inputs"][:, 0] == batch["inputs"][:, 1]).all()
