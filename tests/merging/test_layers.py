"""Oracles: the card of layer swapping (148), coefficients by hand, both layouts of a decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax import trees
from kd_jax.merging.layers import TIED, blend_layers, layer_change, layer_swap, zones
from kd_jax.models.config import DecoderConfig
from kd_jax.models.decoder import decoder
from kd_jax.models.layout import stack, unstack

L = 4
CONFIG = DecoderConfig(
    vocab=8, width=4, depth=L, heads=1, kv_heads=1, head_dim=4, mlp=4, qkv_bias=True
)


def drawn(seed, config=CONFIG):
    """Random leaves, norms and biases too, so that every leaf tells the experts apart."""
    shapes = jax.eval_shape(decoder(config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


TASK, LANGUAGE = drawn(1), drawn(2)


def same(found, expected):
    trees.check_same("found", found, "expected", expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_coefficients_by_hand():
    assert zones(6, bottom=2, top=1).tolist() == [1, 1, 0, 0, 0, 1]
    assert zones(6, bottom=2, top=1, transition=1).tolist() == [1, 1, 0.5, 0, 0.5, 1]
    # An empty block has no transition; two that meet do not add up.
    assert zones(5, bottom=0, top=1, transition=2).tolist() == [0, 0, 0.5, 0.5, 1]
    assert zones(4, bottom=1, top=1, transition=3).tolist() == [1, 0.5, 0.5, 1]
    assert zones(3, bottom=3, top=0, transition=2).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bottom": 3, "top": 2}, "bottom, top: got 3 and 2, takes up to 4 layers"),
        ({"bottom": -1, "top": 0}, "bottom: got -1"),
        ({"bottom": 1, "top": 1, "transition": -1}, "transition: got -1"),
    ],
)
def test_blocks_that_do_not_fit(given, said):
    with pytest.raises(ValueError, match=said):
        layer_swap(TASK, LANGUAGE, **given)


@pytest.mark.parametrize("transition", [0, 2])
def test_limits_of_the_card(transition):
    same(layer_swap(TASK, LANGUAGE, bottom=0, top=0, transition=transition), TASK)
    for bottom in range(L + 1):
        all_language = layer_swap(TASK, LANGUAGE, bottom=bottom, top=L - bottom)
        same(all_language, LANGUAGE)
        equal = layer_swap(TASK, TASK, bottom=bottom, top=0, transition=transition)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), equal, TASK)


def test_where_each_leaf_comes_from():
    found = trees.flatten(layer_swap(TASK, LANGUAGE, bottom=1, top=0, transition=1))
    task, language = trees.flatten(TASK), trees.flatten(LANGUAGE)
    np.testing.assert_array_equal(found["embed/embedding"], language["embed/embedding"])
    np.testing.assert_array_equal(found["final_norm/scale"], task["final_norm/scale"])
    np.testing.assert_array_equal(found["unembed/embedding"], task["unembed/embedding"])
    for path in (path for path in found if path.startswith("layers/")):
        a, b = task[path], language[path]
        np.testing.assert_array_equal(found[path][0], b[0])
        np.testing.assert_allclose(found[path][1], (a[1] + b[1]) / 2, rtol=1e-6)
        np.testing.assert_array_equal(found[path][2:], a[2:])
    turned = layer_swap(TASK, LANGUAGE, bottom=0, top=1)
    same(turned["embed"], TASK["embed"])
    same(turned["final_norm"], LANGUAGE["final_norm"])
    same(turned["unembed"], LANGUAGE["unembed"])


def test_a_tied_table_goes_with_the_top_and_has_to_be_said():
    task, language = (drawn(i, dataclasses.replace(CONFIG, tied=True)) for i in (1, 2))
    found = layer_swap(task, language, bottom=2, top=0, sides=TIED)
    same(found["embed"], task["embed"])
    same(layer_swap(task, language, bottom=0, top=1, sides=TIED)["embed"], language["embed"])
    with pytest.raises(ValueError, match="rules that match no path: 'unembed"):
        layer_swap(task, language, bottom=2, top=0)
    with pytest.raises(ValueError, match="no rule matches unembed/embedding"):
        layer_swap(TASK, LANGUAGE, bottom=2, top=0, sides=TIED)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, L), st.integers(0, L), st.integers(0, 2))
def test_both_layouts_agree(bottom, top, transition):
    given = {"bottom": bottom, "top": min(top, L - bottom), "transition": transition}
    unrolled = layer_swap(unstack(TASK), unstack(LANGUAGE), **given)
    same(stack(unrolled), layer_swap(TASK, LANGUAGE, **given))


def test_layers_are_numbered_not_sorted_as_text():
    """Of twelve subtrees "10" comes second in the order of leaves."""
    task = {"layers": {str(i): {"w": jnp.zeros(2)} for i in range(12)}}
    language = {"layers": {str(i): {"w": jnp.ones(2)} for i in range(12)}}
    found = layer_swap(task, language, bottom=2, top=1, sides=())
    ones = {i for i, layer in found["layers"].items() if layer["w"][0] == 1}
    assert ones == {"0", "1", "11"}


def test_gradient_in_the_shares():
    share = jnp.array([0.0, 0.25, 0.5, 1.0])

    def total(s):
        return sum(x.sum() for x in jax.tree.leaves(blend_layers(TASK, LANGUAGE, s)))

    grad = jax.jit(jax.grad(total))(share)
    difference = jax.tree.map(lambda a, b: b - a, TASK, LANGUAGE)
    expected = jnp.zeros(L).at[0].set(difference["embed"]["embedding"].sum())
    for leaf in jax.tree.leaves(difference["layers"]):
        expected += leaf.reshape(L, -1).sum(1)
    for part in (difference["final_norm"]["scale"], difference["unembed"]["embedding"]):
        expected = expected.at[-1].add(part.sum())
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-4)


def test_sums_are_float32_and_the_dtype_is_that_of_the_task():
    task = {"layers": {"w": jnp.full((2, 1), 1.0, jnp.bfloat16)}}
    language = {"layers": {"w": jnp.full((2, 1), 1 + 2.4 / 128, jnp.float32)}}
    found = blend_layers(task, language, [0.0, 0.25], sides=())["layers"]["w"]
    # 1 + 0.6 / 128 is next to 1 + 1 / 128; with the language rounded first it would end as 1.
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[:, 0], np.array([1.0, 1.0078125], found.dtype))


@pytest.mark.parametrize("layout", [lambda x: x, unstack], ids=["stacked", "unrolled"])
def test_change_by_hand(layout):
    base = {
        "embed": {"embedding": jnp.zeros((2, 2))},
        "layers": {"w": jnp.zeros((2, 3, 1)), "scale": jnp.ones((2, 1))},
    }
    model = {
        "embed": {"embedding": jnp.full((2, 2), 9.0)},  # outside of the layers: not read
        "layers": {
            "w": jnp.array([[[1.0], [-3.0], [0.0]], [[0.0], [0.0], [0.0]]]),
            "scale": jnp.array([[1.0], [0.0]]),
        },
    }
    found = layer_change(layout(model), layout(base))
    np.testing.assert_allclose(found.mean_absolute, [1.0, 0.25])
    np.testing.assert_allclose(found.changed, [0.5, 0.25])
    jitted = jax.jit(lambda m, b: layer_change(m, b))(layout(model), layout(base))
    np.testing.assert_allclose(jitted.changed, [0.5, 0.25])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}, "one L"),
        ({"a": jnp.ones(())}, "one L"),
        ({"0": {"a": jnp.ones(1)}, "2": {"a": jnp.ones(1)}}, "without a gap"),
        ({"0": {"a": jnp.ones(1)}, "b": jnp.ones((1, 1))}, "subtree a layer"),
    ],
)
def test_trees_that_have_no_depth(layers, said):
    with pytest.raises(ValueError, match=said):
        layer_swap({"layers": layers}, {"layers": layers}, bottom=1, top=0, sides=())


def test_wrong_numbers_of_shares_and_no_layers():
    with pytest.raises(ValueError, match=r"share: got shape \(3,\), takes one a layer, \(4,\)"):
        blend_layers(TASK, LANGUAGE, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="matches none of the paths"):
        layer_swap({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, bottom=0, top=0, sides=())


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    specs = jax.tree.map(lambda x: P("fsdp") if x.shape[0] == 8 else P(), TASK)
    specs["layers"] = jax.tree.map(lambda x: P(*[None] * (x.ndim - 1), "fsdp"), TASK["layers"])
    wide = dataclasses.replace(CONFIG, width=8, head_dim=8, mlp=8)
    models = drawn(1, wide), drawn(2, wide)
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    placed = [jax.device_put(x, shardings) for x in models]
    swap = jax.jit(lambda a, b: layer_swap(a, b, bottom=1, top=1, transition=1))
    eight = swap(*placed)
    same(jax.device_get(eight), jax.device_get(swap(*models)))
    assert eight["layers"]["mlp"]["up"]["kernel"].sharding.spec == P(None, None, "fsdp")
