"""The diagonal Fisher: closed forms, finite sums by NumPy, samples, and the pass over data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close, batch_of, linear_model

from kd_jax.attribution.fisher import diagonal_fisher, drawn, every_class
from kd_jax.attribution.means import mean_of, mean_over_examples
from kd_jax.data import arrays, order, sources
from kd_jax.steps import guard_non_finite

MODEL = linear_model()
PARAMS = MODEL.init(jax.random.key(1))
KEY = jax.random.key(0)


def logits(params, frozen, batch):
    return MODEL.apply(params["model"], batch).head.logits()


def passed(step, batches, params=PARAMS):
    state = step.init(KEY, params, {}, batches[0])
    apply = jax.jit(step.apply)
    for batch in batches:
        state, _ = apply(state, {}, batch)
    return state


def fisher(batches, microbatches=1, **kwargs):
    step = mean_over_examples(diagonal_fisher(logits, **kwargs), microbatches=microbatches)
    return mean_of(passed(step, batches), {})


def by_numpy(rows, params=PARAMS):
    """mean_x sum_c p_c (d log p_c)^2, from d log p_c / d kernel[d, k] = x_d (1[c = k] - p_k)."""
    x, w = (np.asarray(rows[n], np.float64) for n in ("inputs", "weights"))
    z = x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    kernel, bias = np.zeros((x.shape[1], z.shape[1])), np.zeros(z.shape[1])
    for i in range(len(x)):
        for c in range(z.shape[1]):
            of_z = (np.arange(z.shape[1]) == c) - p[i]
            kernel += w[i] * p[i, c] * np.outer(x[i], of_z) ** 2
            bias += w[i] * p[i, c] * of_z**2
    return {"kernel": kernel / w.sum(), "bias": bias / w.sum()}


def test_the_closed_form_of_a_linear_softmax_layer():
    """F[d, c] = p_c (1 - p_c) x_d^2, worked out in float64."""
    kernel = jnp.array([[0.2, 0.0, -0.2], [-0.1, 0.3, 0.1]])

    def linear(params, frozen, batch):
        return batch["inputs"] @ params["model"]["kernel"]

    batch = {"inputs": jnp.array([[1.0, 2.0]]), "weights": jnp.ones(1)}
    keys = jax.random.split(KEY, 1)
    found = diagonal_fisher(linear)({"model": {"kernel": kernel}}, {}, batch, keys)["kernel"]
    expected = [[0.193182, 0.249459, 0.193182], [0.772728, 0.997834, 0.772728]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_pass_is_the_mean_over_all_examples():
    """Ten uneven rows in batches of four, the last filled up: not a mean of means."""
    rows = jax.tree.map(np.asarray, batch_of(10))
    source = sources.array_batches(
        arrays.pad_rows(rows, 12), seed=0, name="pass", batch_size=4, draw=order.sequential
    )
    found = fisher([source(i, slice(0, 4)) for i in range(3)])
    assert_trees_close(found, by_numpy(rows))


@pytest.mark.parametrize("labels", [every_class, drawn(3)], ids=["exact", "drawn"])
def test_microbatches_and_devices_change_nothing(labels):
    batches = [batch_of(8, seed=i) for i in range(2)]
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    sharded = [jax.device_put(b, NamedSharding(mesh, P("data"))) for b in batches]
    assert_trees_close(fisher(batches, labels=labels), fisher(sharded, 2, labels=labels))


@pytest.mark.slow
def test_drawn_labels_estimate_the_exact_expectation():
    rows = batch_of(4)
    keys = jax.random.split(KEY, 4)
    found = diagonal_fisher(logits, labels=drawn(4000))({"model": PARAMS}, {}, rows, keys)
    exact = diagonal_fisher(logits)({"model": PARAMS}, {}, rows, keys)
    assert_trees_close(found, exact, rtol=0.1, atol=1e-3)
    once = diagonal_fisher(logits, labels=drawn(1))({"model": PARAMS}, {}, rows, keys)
    assert not np.allclose(once["kernel"], exact["kernel"], rtol=0.1)
    again = diagonal_fisher(logits, labels=drawn(1))({"model": PARAMS}, {}, rows, keys[::-1])
    assert not np.array_equal(once["kernel"], again["kernel"])


def test_a_step_draws_other_labels_than_the_one_before():
    one, two = (fisher([batch_of(4)] * n, labels=drawn(1)) for n in (1, 2))
    assert not np.allclose(one["kernel"], two["kernel"])


def test_nothing_moves_padding_may_be_nan_and_a_guard_may_stand_around():
    batch = batch_of(4)
    spoilt = batch | {"inputs": batch["inputs"].at[0].set(jnp.nan)}  # its weight is 0
    step = mean_over_examples(diagonal_fisher(logits))
    state = passed(step, [spoilt])
    assert_trees_close(mean_of(state, {}), fisher([batch]))
    np.testing.assert_array_equal(state.params["model"]["kernel"], PARAMS["kernel"])
    # Not under a weight: a guard keeps the mean from before.
    bad = spoilt | {"weights": jnp.ones(4)}
    guarded = passed(guard_non_finite(step), [batch, bad])
    assert_trees_close(guarded.carry["inner"], passed(step, [batch]).carry)


def test_bfloat16_weights_have_a_float32_fisher():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    step = mean_over_examples(diagonal_fisher(logits))
    found = mean_of(passed(step, [batch_of(4)], half), {})
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_trees_close(found, by_numpy(batch_of(4)), rtol=0.1)


def test_refusals():
    with pytest.raises(ValueError, match="microbatches: got 0, takes at least 1"):
        mean_over_examples(diagonal_fisher(logits), microbatches=0)
    with pytest.raises(ValueError, match="samples: got 0, takes at least 1"):
        drawn(0)
    flat = diagonal_fisher(lambda *a: logits(*a)[0])
    with pytest.raises(ValueError, match=r"logits: got shape \(4,\), takes \[B, C\]"):
        mean_over_examples(flat).init(KEY, PARAMS, {}, batch_of(2))
