"""Paths, strict rules, partition and the exact global threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax import trees

TREE = {"layers": {"q": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}, "head": jnp.ones(4)}


def test_paths_are_slash_joined_keys_and_nest_inverts_flatten():
    flat = trees.flatten(TREE)
    assert list(flat) == ["head", "layers/q/bias", "layers/q/kernel"] == trees.paths(TREE)
    assert jax.tree.structure(trees.nest(flat)) == jax.tree.structure(TREE)
    with pytest.raises(ValueError, match="runs through the leaf"):
        trees.nest({"a": 1, "a/b": 2})
    with pytest.raises(ValueError, match="inside another path"):
        trees.nest({"a/b": 2, "a": 1})


def test_rules_take_the_first_match_and_are_strict():
    rules = ((".*kernel", ("in", "out")), (".*", None))
    assert trees.match_rules(rules, TREE) == {
        "layers": {"q": {"kernel": ("in", "out"), "bias": None}},
        "head": None,
    }
    with pytest.raises(ValueError, match="no rule matches head, layers/q/bias"):
        trees.match_rules(((".*kernel", 1),), TREE)
    with pytest.raises(ValueError, match="match no path: 'kernel'"):
        trees.match_rules((("kernel", 1), (".*", 2)), TREE)


def test_partition_and_combine_are_inverse():
    chosen, rest = trees.partition(TREE, ".*kernel")
    assert trees.paths(chosen) == ["layers/q/kernel"]
    assert trees.paths(rest) == ["head", "layers/q/bias"]
    both = trees.combine(chosen, rest)
    assert jax.tree.structure(both) == jax.tree.structure(TREE)
    assert all(a is b for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(TREE), strict=True))
    assert trees.combine({"a": 1, "b": None}, {"a": 2, "b": 3}) == {"a": 1, "b": 3}
    with pytest.raises(ValueError, match="selects none"):
        trees.partition(TREE, "weights")


def test_check_same_names_every_difference():
    other = {
        "layers": {"q": {"kernel": jnp.ones((2, 4)), "scale": jnp.zeros(3)}},
        "head": TREE["head"],
    }
    with pytest.raises(ValueError) as error:
        trees.check_same("base", TREE, "model 1", other)
    for text in ("layers/q/bias only in base", "layers/q/scale only in model 1", "(2, 4)"):
        assert text in str(error.value)
    trees.check_same("base", TREE, "model 1", TREE)


@pytest.mark.slow
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=12
    ),
    cut=st.integers(1, 2),
    data=st.data(),
)
def test_kth_smallest_magnitude_is_the_sorted_one(values, cut, data):
    x = np.array(values, np.float32)
    k = data.draw(st.integers(1, len(values)))
    tree = {"a": jnp.array(x[:cut]), "b": jnp.array(x[cut:])}
    found = trees.kth_smallest_magnitude(tree, k)
    # XLA on the CPU may flush subnormal numbers to zero in |x|; the bits then order as zero.
    expected = np.sort(np.where(np.abs(x) < np.finfo(np.float32).tiny, 0, np.abs(x)))[k - 1]
    got = np.asarray(found)
    assert (0 if got < np.finfo(np.float32).tiny else got) == expected


def test_kth_smallest_magnitude_counts_past_the_limbs_it_is_kept_in():
    """The counts of two leaves, 40000 each, add up to more than 16 bits."""
    leaf = jnp.linspace(1.0, 2.0, 40_000)
    for k in (60_000, 70_000, 80_000):
        found = trees.kth_smallest_magnitude({"a": leaf, "b": -leaf}, k)
        assert float(found) == float(leaf[(k - 1) // 2])


def test_leaves_past_32_bits_are_counted_layer_by_layer(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (5, 40, 400))
    ordered = np.sort(np.abs(np.ravel(x)))
    monkeypatch.setattr(trees, "_LARGE", 1000)
    for k in (1, 70_000):
        assert trees.kth_smallest_magnitude({"a": x, "b": x[0, 0, :3] * 0 + 9}, k) == ordered[k - 1]
    ones = jnp.ones((5, 40, 400), jnp.int8)
    for leaves, total in (([ones, ones[:1]], 96_000), ([-ones, -ones[:1], ones[:2]], -64_000)):
        high, low = trees.count(leaves, jnp.int32)
        assert high * 2**16 + low == total
        assert 0 <= low < 2**16


@pytest.mark.parametrize("shape", [(2**15, 2**17), (2, 2**31)])
def test_leaves_too_large_to_count_are_refused(shape):
    def fifth(x):
        return trees.kth_smallest_magnitude(x, 5)

    with pytest.raises(ValueError, match="unstack it"):
        jax.eval_shape(fifth, jax.ShapeDtypeStruct(shape, jnp.float32))
    jax.eval_shape(fifth, jax.ShapeDtypeStruct((80, 2**28), jnp.float32))


def test_kth_smallest_magnitude_refuses_an_impossible_k():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: got {k}"):
            trees.kth_smallest_magnitude({"head": TREE["head"]}, k)
