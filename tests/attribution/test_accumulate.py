"""Sums of gradients over a pass: by NumPy, however batches are cut, in evaluation mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close, batch_of, linear_model, squared_error

from kd_jax.attribution.accumulate import gradient_sum
from kd_jax.data import arrays, order, sources
from kd_jax.launch.stages import inner
from kd_jax.steps import guard_non_finite
from kd_jax.types import Objective, Output, weighted_sum

MODEL = linear_model()
PARAMS = MODEL.init(jax.random.key(1))
KEY = jax.random.key(0)


def passed(step, batches, frozen=None):
    state = step.init(KEY, PARAMS, frozen or {}, batches[0])
    apply = jax.jit(step.apply)
    for batch in batches:
        state, metrics = apply(state, frozen or {}, batch)
    return state, metrics


def by_numpy(rows):
    """The gradient of the weighted mean over rows of the mean over classes of (z - 1)^2."""
    x, w = (np.asarray(rows[n], np.float64) for n in ("inputs", "weights"))
    z = x @ np.asarray(PARAMS["kernel"], np.float64) + np.asarray(PARAMS["bias"], np.float64)
    of_z = 2 * (z - 1) / z.shape[1] * (w / w.sum())[:, None]
    return {"kernel": x.T @ of_z, "bias": of_z.sum(0)}


def test_a_pass_is_the_sum_of_the_batches_means():
    """Ten rows in batches of four: the last batch has two."""
    rows = jax.tree.map(np.asarray, batch_of(10))
    source = sources.array_batches(
        arrays.pad_rows(rows, 12), seed=0, name="pass", batch_size=4, draw=order.sequential
    )
    step = gradient_sum(squared_error(MODEL))
    state, metrics = passed(step, [source(i, slice(0, 4)) for i in range(3)])
    parts = [by_numpy({n: x[i : i + 4] for n, x in rows.items()}) for i in (0, 4, 8)]
    expected = jax.tree.map(lambda *g: sum(g), *parts)
    assert_trees_close(state.carry["gradient"], expected)
    size = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(parts[-1])))
    np.testing.assert_allclose(metrics["grad_norm"], size, rtol=1e-5)
    assert int(state.step) == 3
    for name in PARAMS:  # nothing has moved
        np.testing.assert_array_equal(state.params["model"][name], PARAMS[name])


def test_microbatches_and_devices_change_nothing():
    batches = [batch_of(8, seed=i) for i in range(2)]
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    sharded = [jax.device_put(b, NamedSharding(mesh, P("data"))) for b in batches]
    one, _ = passed(gradient_sum(squared_error(MODEL)), batches)
    cut, _ = passed(gradient_sum(squared_error(MODEL), microbatches=2), sharded)
    assert_trees_close(one.carry, cut.carry)


def test_the_objective_is_in_evaluation_mode_and_keeps_its_state():
    def init(key, params, frozen, batch):
        return {}, {"count": jnp.int32(0)}

    def loss(params, carry, frozen, batch, ctx):
        assert not ctx.train
        size = params["model"]["kernel"].sum() * ctx.stats["two"] * frozen["three"]
        return Output({"size": weighted_sum(size * jnp.ones_like(batch["weights"]))})

    def update(carry, params, frozen, output, ctx):
        assert not ctx.train
        return {"count": carry["count"] + 1}

    def stats(params, carry, frozen, batch, ctx):
        assert not ctx.train
        two = 2.0 + 0.0 * params["model"]["kernel"].sum()
        return {"two": weighted_sum(two * jnp.ones_like(batch["weights"]))}

    step = guard_non_finite(gradient_sum(Objective(init, loss, update, stats)))
    state, _ = passed(step, [batch_of(4)] * 3, {"three": jnp.float32(3.0)})
    carry = inner(state).carry
    assert int(carry["objective"]["count"]) == 3
    np.testing.assert_allclose(carry["gradient"]["kernel"], np.full((3, 4), 18.0), rtol=1e-6)
    np.testing.assert_array_equal(carry["gradient"]["bias"], np.zeros(4))


def test_bfloat16_weights_have_float32_sums():
    """257 batches of the same gradient 1: bfloat16 would stop at 256."""
    half = {"w": jnp.ones(2, jnp.bfloat16)}

    def loss(params, carry, frozen, batch, ctx):
        return Output({"w": weighted_sum(params["model"]["w"].sum() * batch["weights"])})

    step = gradient_sum(Objective(lambda *_: ({}, {}), loss))
    batch = {"weights": jnp.ones(1)}
    state = step.init(KEY, half, {}, batch)
    state, _ = jax.lax.scan(lambda s, _: step(s, {}, batch), state, None, length=257)
    np.testing.assert_array_equal(state.carry["gradient"]["w"], [257.0, 257.0])


def test_refusals():
    with pytest.raises(ValueError, match="microbatches: got 0, takes at least 1"):
        gradient_sum(squared_error(MODEL), microbatches=0)
    coupled = squared_error(MODEL)._replace(whole_batch=True)
    with pytest.raises(ValueError, match="couples the examples"):
        gradient_sum(coupled, microbatches=2)
