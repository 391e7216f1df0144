"""TIES against numbers worked out by hand for both rules of trimming, and its symmetries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.merging import ties as m

# D = 8, density 0.5. The expected rows for the released rule are those of the released code.
TAUS = np.array(
    [
        [0.5, -0.1, 0.3, 0.05, -0.8, 0.02, 0.2, -0.4],
        [0.4, 0.6, -0.2, 0.10, 0.7, -0.03, 0.1, -0.5],
        [-0.3, 0.2, 0.25, -0.15, -0.6, 0.04, -0.9, 0.35],
    ],
    np.float32,
)
RELEASED = np.array(
    [
        [0.5, 0, 0.3, 0, -0.8, 0, 0.2, -0.4],
        [0.4, 0.6, -0.2, 0, 0.7, 0, 0, -0.5],
        [-0.3, 0, 0.25, 0, -0.6, 0, -0.9, 0.35],
    ],
    np.float32,
)
EXACT = np.array(
    [
        [0.5, 0, 0.3, 0, -0.8, 0, 0, -0.4],
        [0.4, 0.6, 0, 0, 0.7, 0, 0, -0.5],
        [-0.3, 0, 0, 0, -0.6, 0, -0.9, 0.35],
    ],
    np.float32,
)
SIGNS = [1, 1, 1, 0, -1, 0, -1, -1]

# Multiples of 1/8 are exact in float32, so that sums do not depend on their order.
eighths = st.integers(-16, 16).map(lambda i: np.float32(i / 8))
densities = st.sampled_from([0.12, 0.34, 0.6, 0.9, 1.0])
stacks = hnp.arrays(np.float32, (3, 9), elements=eighths)


def tree(x):
    """Two leaves of different shapes: the operators must be flat over both."""
    x = jnp.asarray(x)
    return {"a": x[:3], "b": {"c": x[3:].reshape(-1, 1)}}


def flat(t):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)])


@functools.partial(jax.jit, static_argnames=("density", "trim", "merge"))
def ties(x, scale=1.0, **kwargs):
    base = tree(jnp.zeros(x.shape[1]))
    return m.ties(base, [tree(row) for row in x], scale=scale, **kwargs)


def merged(x, **kwargs):
    return flat(ties(x, **kwargs))


@pytest.mark.parametrize(("trim", "expected"), [(m.trim, EXACT), (m.trim_released, RELEASED)])
def test_trim_by_hand(trim, expected):
    for row, want in zip(TAUS, expected, strict=True):
        np.testing.assert_array_equal(flat(trim(tree(row), density=0.5)), want)


def test_elect_by_hand():
    # The votes of all entries sum to 0, so that entries without votes stay 0.
    np.testing.assert_array_equal(flat(m.elect([tree(row) for row in RELEASED])), SIGNS)


def test_an_entry_without_votes_takes_the_majority_of_the_whole_model():
    vectors = [{"a": jnp.array([0.0, 2.0]), "b": jnp.array([-1.0, -1.0])}, None]
    vectors[1] = {"a": jnp.array([0.0, -1.0]), "b": jnp.array([-1.0, 3.0])}
    signs = m.elect(vectors)  # votes 0, 1, -1, 1: the majority is +
    np.testing.assert_array_equal(flat(signs), [1, 1, -1, 1])
    assert {x.dtype for x in jax.tree.leaves(signs)} == {jnp.dtype(jnp.int8)}


def test_majority_is_counted_exactly():
    # A net count of one among more entries than float32 counts in ones, spread over two leaves.
    n = 2**24
    plus, minus = jnp.ones(n + 1, jnp.int8), -jnp.ones(n, jnp.int8)
    sign = jax.jit(m._sign_of_sum)
    assert sign([plus, minus]) == 1
    assert sign([-plus, -minus]) == -1
    assert sign([plus, minus, minus[:1]]) == 0


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (m.disjoint_mean, [0.45, 0.6, 0.275, 0, -0.7, 0, -0.9, -0.45]),
        (m.disjoint_sum, [0.9, 0.6, 0.55, 0, -1.4, 0, -0.9, -0.9]),
        (m.disjoint_max, [0.5, 0.6, 0.3, 0, -0.8, 0, -0.9, -0.5]),
    ],
)
def test_released_merges_by_hand(merge, expected):
    got = merged(TAUS, density=0.5, trim=m.trim_released, merge=merge)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_exact_merge_by_hand():
    expected = [0.45, 0.6, 0.3, 0, -0.7, 0, -0.9, -0.45]
    np.testing.assert_allclose(merged(TAUS, density=0.5), expected, rtol=1e-6)


def test_scale_and_base_by_hand():
    base = np.arange(8, dtype=np.float32)
    got = m.ties(tree(base), [tree(base + t) for t in TAUS], density=0.5, scale=2.0)
    expected = base + 2 * np.array([0.45, 0.6, 0.3, 0, -0.7, 0, -0.9, -0.45])
    np.testing.assert_allclose(flat(got), expected, rtol=1e-5, atol=1e-5)


def test_the_threshold_is_over_all_leaves():
    vector = {"small": jnp.array([0.1, 0.2]), "large": jnp.array([1.0, -2.0])}
    kept = m.trim(vector, density=0.5)
    np.testing.assert_array_equal(kept["small"], [0, 0])
    np.testing.assert_array_equal(kept["large"], [1, -2])
    by_leaf = jax.tree.map(lambda x: m.trim(x, density=0.5), vector)
    np.testing.assert_array_equal(by_leaf["small"], [0, np.float32(0.2)])


def test_groups_of_leaves_have_thresholds_of_their_own():
    base = {name: jnp.zeros(4) for name in ("a/w", "a/b", "c/w")}
    model = {"a/w": [1.0, 2, 3, 4], "a/b": [5.0, 6, 7, 8], "c/w": [0.4, 0.3, 0.2, 0.1]}
    model = jax.tree.map(jnp.asarray, model, is_leaf=lambda x: isinstance(x, list))

    def kept(**kwargs):
        got = m.ties(base, [model], density=0.5, **kwargs)
        return [[int(i) for i in np.flatnonzero(got[name])] for name in ("a/w", "a/b", "c/w")]

    assert kept() == [[2, 3], [0, 1, 2, 3], []]
    assert kept(groups=lambda path: "all") == kept()
    assert kept(groups=str) == [[2, 3], [2, 3], [0, 1]]
    assert kept(groups=lambda path: path.split("/")[0]) == [[], [0, 1, 2, 3], [0, 1]]
    assert kept(groups=str, trim=m.trim_released) == [[1, 2, 3], [1, 2, 3], [0, 1, 2]]
    with pytest.raises(ValueError, match="group 'c/w': density: 0.2 of 4 entries keeps none"):
        m.ties(base, [model], density=0.2, groups=lambda path: path if path == "c/w" else "")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, 9, elements=eighths, unique=True), densities)
def test_trim_keeps_the_largest(x, density):
    assume(len(set(np.abs(x))) == 9)
    kept = int(density * 9)
    order = np.argsort(-np.abs(x))
    for trim, count in ((m.trim, kept), (m.trim_released, min(kept + 1, 9))):
        expected = np.zeros_like(x)
        expected[order[:count]] = x[order[:count]]
        trim = jax.jit(trim, static_argnames="density")
        np.testing.assert_array_equal(flat(trim(tree(x), density=density)), expected)


@settings(max_examples=20, deadline=None)
@given(stacks, st.sampled_from([m.disjoint_mean, m.disjoint_sum, m.disjoint_max]))
def test_symmetries(x, merge):
    got = merged(x, density=0.6, merge=merge)
    np.testing.assert_array_equal(merged(x[[2, 0, 1]], density=0.6, merge=merge), got)
    np.testing.assert_array_equal(merged(-x, density=0.6, merge=merge), -got)
    np.testing.assert_array_equal(merged(4 * x, density=0.6, merge=merge), 4 * got)
    np.testing.assert_array_equal(merged(x, density=0.6, merge=merge, scale=0.5), 0.5 * got)


@settings(max_examples=20, deadline=None)
@given(stacks)
def test_density_one_is_the_mean_of_the_agreeing_entries(x):
    votes = np.sign(x.sum(0))
    votes = np.where(votes == 0, np.sign(votes.sum()), votes)
    agree = (np.sign(x) == votes) & (x != 0)
    expected = np.where(agree, x, 0).sum(0) / np.maximum(agree.sum(0), 1)
    np.testing.assert_allclose(merged(x, density=1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(merged(x, density=1.0, trim=m.trim_released), expected, rtol=1e-6)


ONE_MODEL = jax.jit(functools.partial(m.ties, density=1.0))


@settings(max_examples=10, deadline=None)
@given(stacks)
def test_one_model_and_identical_models(x):
    base, model = tree(x[0]), tree(x[1])
    # On a grid of eighths there and back again is exact.
    moved = jax.tree.map(jnp.add, base, model)
    whole = flat(ONE_MODEL(base, [moved]))
    np.testing.assert_array_equal(whole, x[0] + x[1])
    once = merged(x[1:2], density=0.5)
    np.testing.assert_allclose(merged(x[[1, 1, 1, 1]], density=0.5), once, rtol=1e-6)


def test_opposite_models_leave_the_base():
    # Every vote cancels and so does the majority: nothing agrees, and neither sign is preferred.
    x = np.array([[1.0, -2.0, 3.0, 1.0], [-1.0, 2.0, -3.0, -1.0]], np.float32)
    np.testing.assert_array_equal(merged(x, density=1.0), np.zeros(4))


def test_oracle_signs_replace_the_election():
    vectors = [tree(row) for row in TAUS]
    got = m.disjoint_mean(vectors, tree(np.full(8, -1, np.int8)))
    negative = np.where(TAUS < 0, TAUS, 0)
    expected = negative.sum(0) / np.maximum((negative != 0).sum(0), 1)
    np.testing.assert_allclose(flat(got), expected, rtol=1e-6)


def test_weighted_votes_by_hand():
    vectors = [{"w": jnp.array([1.0, -2.0, 3.0])}, {"w": jnp.array([3.0, 1.0, -4.0])}]
    weighted = [{"w": 2 * vectors[0]["w"]}, vectors[1]]
    merge = functools.partial(m.disjoint_mean, weights=[2.0, 1.0])
    got = m.merge_agreeing({"w": jnp.ones(3)}, weighted, merge=merge, scale=2.0)
    # (2 * 1 + 1 * 3) / 3, -2 and 3: the first outvotes the second in the last two.
    np.testing.assert_allclose(got["w"], 1 + 2 * np.array([5 / 3, -2, 3]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"weights: got shape \(3,\)"):
        m.disjoint_mean(vectors, m.elect(vectors), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("merge", [m.disjoint_mean, m.disjoint_sum, m.disjoint_max])
def test_where_the_sign_is_zero_nothing_agrees(merge):
    got = merge([jnp.array([1.0, 1.0]), jnp.array([2.0, -3.0])], jnp.array([0, -1], jnp.int8))
    np.testing.assert_array_equal(got, [0.0, -3.0])


def test_dtypes_follow_the_base():
    base = {"w": jnp.zeros(8, jnp.bfloat16), "v": jnp.zeros(8, jnp.float32)}
    models = [jax.tree.map(lambda x, t=t: jnp.asarray(t, x.dtype), base) for t in TAUS]
    got = m.ties(base, models, density=0.5)
    assert got["w"].dtype == jnp.bfloat16
    assert got["v"].dtype == jnp.float32


def test_a_nan_is_not_trimmed_away():
    x = TAUS.copy()
    x[1, 2] = np.nan
    assert np.isnan(merged(x, density=0.5)[2])


def test_gradients_in_scale_and_models():
    base = tree(jnp.zeros(8))

    def loss(scale, x):
        return jnp.sum(
            jnp.stack(
                [
                    leaf.sum()
                    for leaf in jax.tree.leaves(
                        m.ties(base, [tree(row) for row in x], density=0.5, scale=scale)
                    )
                ]
            )
        )

    by_scale, by_models = jax.jit(jax.grad(loss, (0, 1)))(2.0, jnp.asarray(TAUS))
    np.testing.assert_allclose(by_scale, 0.45 + 0.6 + 0.3 - 0.7 - 0.9 - 0.45, rtol=1e-5)
    expected = np.zeros_like(TAUS)  # scale / (number that agree) where kept and agreeing
    expected[[0, 1], 0] = expected[[0, 2], 4] = expected[[0, 1], 7] = 1.0
    expected[1, 1] = expected[0, 2] = expected[2, 6] = 2.0
    np.testing.assert_allclose(by_models, expected, rtol=1e-6)


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = {"w": (8, 12), "b": (16,)}
    specs = {"w": P("fsdp", "data"), "b": P("fsdp")}
    all_trees = [
        {
            name: jax.random.normal(jax.random.fold_in(key, i), shape)
            for i, (name, shape) in enumerate(shapes.items())
        }
        for key in keys
    ]
    merge = jax.jit(lambda ts: m.ties(ts[0], ts[1:], density=0.3, scale=0.7))
    one = merge(all_trees)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    placed = [jax.device_put(t, shardings) for t in all_trees]
    eight = merge(placed)
    assert len(eight["w"].sharding.device_set) == 8
    for name in shapes:
        np.testing.assert_array_equal(one[name], eight[name])


def test_works_on_shapes_alone():
    like = {"w": jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)}
    out = jax.eval_shape(lambda b, *ms: m.ties(b, ms, density=0.2), like, like, like)
    assert out["w"].shape == (4, 8)
    assert out["w"].dtype == jnp.bfloat16


def test_errors():
    base = {"w": jnp.zeros(8)}
    with pytest.raises(ValueError, match=r"density: got 0.0, takes a number in \(0, 1\]"):
        m.ties(base, [base], density=0.0)
    with pytest.raises(ValueError, match="density: 0.1 of 8 entries keeps none"):
        m.ties(base, [base], density=0.1)
    with pytest.raises(ValueError, match=r"w is \(7,\) in models\[1\], \(8,\) in base"):
        m.ties(base, [base, {"w": jnp.zeros(7)}], density=0.5)
    with pytest.raises(ValueError, match="n is int32"):
        m.ties({"n": jnp.zeros(8, jnp.int32)}, [{"n": jnp.zeros(8, jnp.int32)}], density=0.5)
    with pytest.raises(ValueError, match=r"scale: got shape \(2,\)"):
        m.ties(base, [base, base], density=0.5, scale=[1.0, 2.0])
    with pytest.raises(ValueError, match="v only in signs"):
        m.disjoint_mean([base], {"v": jnp.ones(8, jnp.int8)})
