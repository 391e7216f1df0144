"""Fisher merging: numbers worked out by hand, limits, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.merging.average import average
from kd_jax.merging.fisher import fisher_merge, weights_to_try

# One entry that both know, one that the second knows better, one that neither does.
MODELS = [{"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([3.0, 0.0, -1.0])}]
FISHERS = [{"w": jnp.array([1.0, 0.5, 0.0])}, {"w": jnp.array([1.0, 2.0, 0.0])}]
eighths = st.integers(-32, 32).map(lambda i: np.float32(i / 8))
stacks = hnp.arrays(np.float32, (3, 5), elements=eighths)


def tree(x):
    return {"a": jnp.asarray(x[:2]), "b": {"c": jnp.asarray(x[2:])}}


def close(actual, expected, **kwargs):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **kwargs), actual, expected)


@pytest.mark.parametrize(
    ("favour_target", "normalise", "expected"),
    [
        (True, False, [2.0, 0.4, 3.0]),
        (False, False, [2.0, 0.4, 1.0]),
        # Norms sqrt(1.25) and sqrt(5): weights in the ratio 2 to 1.
        (True, True, [5 / 3, 2 / 3, 3.0]),
    ],
)
def test_by_hand(favour_target, normalise, expected):
    merged = fisher_merge(
        MODELS, FISHERS, [0.5, 0.5], favour_target=favour_target, normalise=normalise
    )
    np.testing.assert_allclose(merged["w"], expected, rtol=1e-5)


@given(stacks, stacks)
def test_limits(x, f):
    models, fishers = [tree(row) for row in x], [tree(np.abs(row)) for row in f]
    # Equal Fisher informations: the weighted mean; the weights' scale does not matter.
    w = jnp.array([0.2, 0.5, 0.3])
    same = [tree(np.abs(f[0]) + 0.5)] * 3
    close(fisher_merge(models, same, w), average(models, w), atol=1e-5)
    close(fisher_merge(models, fishers, w), fisher_merge(models, fishers, 7.0 * w), atol=1e-4)
    # All weight on one model: that model; equal models: the same.
    close(fisher_merge(models, fishers, [1.0, 0.0, 0.0]), models[0])
    close(fisher_merge([models[0]] * 3, fishers), models[0])
    # A scale of a model's Fisher information is divided out, above the floor.
    larger = [jax.tree.map(lambda y: 9.0 * y, fishers[0]), *fishers[1:]]
    merge = [fisher_merge(models, x, w, floor=0.0) for x in (fishers, larger)]
    close(merge[0], merge[1], atol=1e-4)


@given(stacks)
def test_where_no_model_is_certain_the_target_or_the_mean_stays(x):
    models = [tree(row) for row in x]
    nothing = [jax.tree.map(jnp.zeros_like, m) for m in models]
    close(fisher_merge(models, nothing), models[0])
    close(fisher_merge(models, nothing, favour_target=False), average(models), atol=1e-5)
    # Nor is there a NaN where the target counts for nothing.
    close(fisher_merge(models, nothing, [0.0, 1.0, 1.0]), models[0])


def test_differentiable_in_the_weights():
    def first(w):
        return fisher_merge(MODELS, FISHERS, w, normalise=False)["w"]

    w = jnp.array([0.5, 0.5])
    jacobian = jax.jit(jax.jacobian(first))(w)
    # Entry 0: (w_0 + 3 w_1) / (w_0 + w_1), whose derivative in w_0 is -2 w_1 / (w_0 + w_1)^2.
    np.testing.assert_allclose(jacobian[0], [-1.0, 1.0], rtol=1e-5)
    assert np.isfinite(jacobian).all()


def test_sharded_trees_stay_sharded():
    x = jax.random.normal(jax.random.key(0), (4, 8, 3))
    models, fishers = ([{"w": leaf} for leaf in leaves] for leaves in (x[:2], jnp.square(x[2:])))
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    sharded = jax.device_put((models, fishers), split)
    merged = jax.jit(fisher_merge)(*sharded)["w"]
    assert merged.sharding.is_equivalent_to(split, 2)
    np.testing.assert_allclose(merged, fisher_merge(models, fishers)["w"], rtol=1e-5, atol=1e-6)


def test_dtypes_are_those_of_the_target():
    half = [{"w": m["w"].astype(jnp.bfloat16)} for m in MODELS]
    merged = fisher_merge(half, FISHERS, normalise=False)["w"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(merged.astype(jnp.float32), [2.0, 0.4, 3.0], rtol=1e-2)


def test_weights_to_try():
    two = np.asarray(weights_to_try(jax.random.key(0), 2, 5))
    np.testing.assert_allclose(two[:, 0], [0.0, 0.25, 0.5, 0.75, 1.0])
    four = np.asarray(weights_to_try(jax.random.key(0), 4))
    assert four.shape == (51, 4) and (four >= 0).all()
    for w in (two, four):
        np.testing.assert_allclose(w.sum(1), 1.0, rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="fishers: got 1, takes one a model, 2"):
        fisher_merge(MODELS, FISHERS[:1])
    with pytest.raises(ValueError, match=r"fishers\[1\] .*v only in fishers"):
        fisher_merge(MODELS, [FISHERS[0], FISHERS[1] | {"v": jnp.ones(2)}])
    with pytest.raises(ValueError, match="floor: got -1.0"):
        fisher_merge(MODELS, FISHERS, floor=-1.0)
    with pytest.raises(ValueError, match="weights: got shape"):
        fisher_merge(MODELS, FISHERS, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least 2"):
        weights_to_try(jax.random.key(0), 1)
