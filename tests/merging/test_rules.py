"""Merges by path and by layer against the same merges of the parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.average import average, slerp
from kd_jax.merging.dare import dare
from kd_jax.merging.rules import by_path, each_layer, layer_gradient
from kd_jax.merging.sparse import merge_sparse
from kd_jax.merging.ties import ties
from kd_jax.models import layout

KEY = jax.random.key(0)
SHAPES = {
    "embed": {"embedding": (7, 4)},
    "layers": {"attn": {"kernel": (3, 4, 5)}, "mlp": {"kernel": (3, 4, 6), "bias": (3, 6)}},
}


def models(n):
    def one(key):
        return jax.tree.map(
            lambda s: jax.random.normal(jax.random.fold_in(key, sum(s)), s),
            SHAPES,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    return [one(key) for key in jax.random.split(KEY, n)]


def same(a, b, **kwargs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), a, b)


def mean(base, models):
    return average(models)


def spherical(base, models, t):
    return slerp(base, models[0], t)


@pytest.mark.slow
def test_each_rule_merges_its_leaves_together():
    base, *others = models(3)
    trimmed = functools.partial(ties, density=0.3)
    recipe = by_path(
        [
            (r"layers/.*/kernel", trimmed),
            (r"layers/mlp/.*", functools.partial(task_arithmetic, scale=0.3)),
            (r".*", mean),
        ]
    )
    got = jax.jit(recipe)(base, others)
    kernels = [{k: m["layers"][k]["kernel"] for k in ("attn", "mlp")} for m in (base, *others)]
    expected = trimmed(kernels[0], kernels[1:])  # flat over both kernels
    same({k: got["layers"][k]["kernel"] for k in ("attn", "mlp")}, expected)
    same(got["embed"], average(others)["embed"])
    arithmetic = task_arithmetic(base, others, scale=0.3)
    same(got["layers"]["mlp"]["bias"], arithmetic["layers"]["mlp"]["bias"])


@pytest.mark.slow
def test_draws_do_not_depend_on_the_rules():
    base, *others = models(3)
    drop = functools.partial(merge_sparse, sparsify=functools.partial(dare, drop=0.5), key=KEY)
    same(by_path([("layers/.*", drop), (".*", drop)])(base, others), drop(base, others))


def test_by_path_is_strict():
    base, *others = models(3)
    with pytest.raises(ValueError, match="no rule matches embed/embedding"):
        by_path([("layers/.*", mean)])(base, others)
    with pytest.raises(ValueError, match="rules that match no path: 'head/.*'"):
        by_path([("head/.*", mean), (".*", mean)])(base, others)
    with pytest.raises(ValueError, match=r"embed/embedding only in models\[0\]"):
        by_path([(".*", mean)])({"layers": base["layers"]}, others)
    with pytest.raises(ValueError, match=r"embed/embedding only in base"):
        by_path([("embed/.*", lambda base, models: {}), (".*", mean)])(base, others)


def test_stacked_layers_are_merged_as_layers_of_their_own():
    base, *others = models(3)
    t = layer_gradient([0.0, 0.5], 3)
    recipe = by_path([("layers/.*", each_layer(spherical, t=t)), (".*", mean)])
    got = layout.unstack(jax.jit(recipe)(base, others[:1]))
    # The same recipe for the layout with a subtree a layer.
    rules = [(f"layers/{i}/.*", functools.partial(spherical, t=t[i])) for i in range(3)]
    unstacked = [layout.unstack(base), [layout.unstack(others[0])]]
    same(got, jax.jit(by_path([*rules, (".*", mean)]))(*unstacked))
    same(got["layers"]["0"], unstacked[0]["layers"]["0"])


def test_what_is_flat_is_flat_over_a_layer():
    base, other = (m["layers"] for m in models(2))
    trimmed = functools.partial(ties, density=0.4)
    got = jax.jit(each_layer(trimmed))(base, [other])
    last = [layout.unstack({"layers": m})["layers"]["2"] for m in (base, other)]
    same(jax.tree.map(lambda x: x[2], got), jax.jit(trimmed)(last[0], last[1:]))


@pytest.mark.slow
def test_coefficients_of_layers_are_learned_and_keys_are_per_layer():
    base, *others = (m["layers"] for m in models(3))
    merge = each_layer(task_arithmetic, scale=jnp.array([[0.5, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    got = merge(base, others)["attn"]["kernel"]
    start, moved, _ = (m["attn"]["kernel"] for m in (base, *others))
    for i, scale in enumerate((0.5, 1.0, 0.0)):
        same(got[i], start[i] + scale * (moved - start)[i])

    def loss(scale):
        merged = each_layer(task_arithmetic, scale=scale)(base, others)
        return sum(x[1].sum() for x in jax.tree.leaves(merged))

    grad = jax.grad(loss)(jnp.ones((3, 2)))
    assert (grad[1] != 0).all() and not grad[jnp.array([0, 2])].any()

    ones, zeros = (jax.tree.map(lambda x, v=v: jnp.full_like(x, v), base) for v in (1.0, 0.0))
    drop = functools.partial(merge_sparse, sparsify=functools.partial(dare, drop=0.5))
    kernel = each_layer(drop, key=jax.random.split(KEY, 3))(zeros, [ones])["attn"]["kernel"]
    assert (kernel[0] != kernel[1]).any()


def test_each_layer_names_what_has_another_length():
    base, other = ({"w": jnp.ones((3, 2)), "b": jnp.ones(4)} for _ in range(2))
    with pytest.raises(ValueError, match=r"one leading L, got base/b \(4,\), base/w \(3, 2\)"):
        each_layer(mean)(base, [other])
    with pytest.raises(ValueError, match=r"got base/w \(3, 2\), t \(2,\)"):
        each_layer(spherical, t=jnp.ones(2))({"w": base["w"]}, [{"w": base["w"]}])
    with pytest.raises(ValueError, match=r"got base/s \(\)"):
        each_layer(mean)({"s": jnp.ones(())}, [{"s": jnp.ones(())}])


def test_layer_gradient():
    np.testing.assert_allclose(layer_gradient([0, 1, 0.5], 5), [0, 0.5, 1, 0.75, 0.5])
    np.testing.assert_allclose(layer_gradient([0, 0.3, 1], 2), [0, 1])
    np.testing.assert_allclose(layer_gradient([0.2], 3), [0.2] * 3, rtol=1e-6)
    np.testing.assert_allclose(layer_gradient([0.2, 0.8], 1), [0.2], rtol=1e-6)
    with pytest.raises(ValueError, match="got 0 and 3"):
        layer_gradient([], 3)
