"""Searched merges: the card's oracles, paths against plain loops, and the search itself."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.merging.adaptive import add_layerwise
from kd_jax.merging.dare import dare
from kd_jax.merging.evolution import dare_ties, data_flow, evolve, flow_path, of_groups
from kd_jax.merging.sparse import merge_sparse
from kd_jax.merging.ties import disjoint_sum, merge_agreeing
from kd_jax.trees import paths

KEY = jax.random.key(0)


def tree(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "layer_0": {
            "kernel": jax.random.normal(keys[0], (6, 5)),
            "bias": jax.random.normal(keys[1], (5,)),
        },
        "layer_1": {"kernel": jax.random.normal(keys[2], (5, 4))},
    }


BASE, MODELS = tree(0), [tree(i) for i in (1, 2, 3)]


def layer(path):
    return path.split("/")[0]


@jax.jit
def by_layer(density, weight, base=BASE, models=MODELS):
    d, w = (of_groups(x, base, layer) for x in (density, weight))
    return dare_ties(base, models, KEY, density=d, weight=w)


def close(a, b, **limits):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 1e-5, "atol": 1e-6} | limits))


def test_values_of_groups():
    found = of_groups(jnp.array([[1.0, 2.0], [3.0, 4.0]]), BASE, layer)
    assert paths(found) == paths(BASE)
    np.testing.assert_array_equal(found["layer_0"]["bias"], [1, 3])
    np.testing.assert_array_equal(found["layer_1"]["kernel"], [2, 4])
    apart = of_groups(jnp.arange(6.0).reshape(2, 3), BASE, str)
    assert [float(x[0]) for x in jax.tree.leaves(apart)] == [0, 1, 2]
    with pytest.raises(ValueError, match="values: got 2 columns, takes one for each of the 3"):
        of_groups(jnp.ones((2, 2)), BASE, str)


@pytest.mark.parametrize("n", range(3))
def test_density_one_and_one_weight_is_that_model(n):
    close(by_layer(jnp.ones((3, 2)), jnp.zeros((3, 2)).at[n].set(1.0)), MODELS[n])


def test_each_group_follows_its_own_column():
    found = by_layer(jnp.ones((3, 2)), jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    close(found["layer_0"], MODELS[0]["layer_0"])
    close(found["layer_1"], MODELS[2]["layer_1"])
    thinned = by_layer(jnp.ones((3, 2)).at[0, 1].set(0.3), jnp.zeros((3, 2)).at[0].set(1.0))
    close(thinned["layer_0"], MODELS[0]["layer_0"])
    kept = np.isclose(thinned["layer_1"]["kernel"], BASE["layer_1"]["kernel"], atol=1e-6)
    assert 4 < kept.sum() < 20


def test_one_recipe_for_all_is_the_plain_merge():
    weights = jnp.array([0.5, -0.3, 1.2])
    found = by_layer(jnp.full((3, 2), 0.6), jnp.repeat(weights[:, None], 2, 1))

    def combine(base, vectors, *, scale):
        voted = [jax.tree.map(lambda x, n=n: weights[n] * x, v) for n, v in enumerate(vectors)]
        return merge_agreeing(base, voted, scale=scale, merge=disjoint_sum)

    @jax.jit
    def plain(base, models):
        thin = functools.partial(dare, drop=0.4)
        return merge_sparse(base, models, thin, key=KEY, combine=combine)

    close(found, plain(BASE, MODELS))


def test_larger_densities_keep_what_smaller_ones_keep():
    one = jnp.zeros((3, 2)).at[1].set(1.0)
    few, many = (by_layer(jnp.full((3, 2), d), one) for d in (0.3, 0.7))
    for x, y, base in zip(*map(jax.tree.leaves, (few, many, BASE)), strict=True):
        moved_few, moved_many = (np.abs(z - base) > 1e-6 for z in (x, y))
        assert not np.any(moved_few & ~moved_many)


@pytest.mark.slow
def test_a_population_is_one_vmap_with_the_dtype_of_the_base():
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE)
    draw = jax.random.uniform(jax.random.key(5), (4, 2, 3, 2), minval=0.2)
    many = jax.jit(jax.vmap(lambda x: by_layer(x[0], x[1], base, MODELS)))(draw)
    for i in range(4):
        one = by_layer(draw[i, 0], draw[i, 1], base, MODELS)
        assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(one))
        close(jax.tree.map(lambda x, i=i: x[i].astype(jnp.float32), many), one, rtol=1e-2)


def test_sharded_trees_give_the_same_numbers_and_stay_sharded():
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",), axis_types=(AxisType.Auto,))

    def put(model):
        rows, columns, whole = (NamedSharding(mesh, P(*axes)) for axes in (("x",), (None, "x"), ()))
        places = {
            "layer_0": {"kernel": rows, "bias": whole},
            "layer_1": {"kernel": columns},
        }
        return jax.device_put(model, places)

    recipe = jnp.full((3, 2), 0.5), jnp.array([[0.5, 1.0], [-0.3, 0.2], [1.2, 0.4]])
    base, models = put(BASE), [put(model) for model in MODELS]
    found = by_layer(*recipe, base, models)
    close(found, by_layer(*recipe))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(base), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@pytest.mark.slow
def test_weights_have_gradients():
    weight = jnp.array([[0.4, 0.2], [-0.3, 0.5], [0.6, 0.1]])

    @jax.jit
    def loss(weight):
        merged = by_layer(jnp.full((3, 2), 0.7), weight)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(merged))

    found, step = jax.grad(loss)(weight), 1e-2
    for n, g in ((0, 0), (1, 1), (2, 0)):
        up, down = (loss(weight.at[n, g].add(s)) for s in (step, -step))
        np.testing.assert_allclose(found[n, g], (up - down) / (2 * step), rtol=2e-2, atol=2e-2)


def test_recipes_of_another_outline_are_refused():
    ones = of_groups(jnp.ones((3, 2)), BASE, layer)
    with pytest.raises(ValueError, match="weight: got leaves"):
        dare_ties(BASE, MODELS, KEY, density=ones, weight={"layer_0": ones["layer_0"]})
    with pytest.raises(ValueError, match="density: got leaves"):
        dare_ties(BASE, MODELS[:2], KEY, density=ones, weight=ones)


# Six layers of a stream of width 3: two models of three.
D, M, R = 3, 6, 2
BLOCKS = {
    "kernel": 0.5 * jax.random.normal(jax.random.key(7), (M, D, D)),
    "bias": 0.5 * jax.random.normal(jax.random.key(8), (M, D)),
}
STREAM = jax.random.normal(jax.random.key(9), (4, D))
SCALES = 1.0 + 0.2 * jax.random.normal(jax.random.key(10), (M, M))


def block(params, x):
    return x + jnp.tanh(x @ params["kernel"] + params["bias"][None])


def layers(chosen, x=STREAM):
    for j in chosen:
        x = block(jax.tree.map(lambda leaf, j=j: leaf[j], BLOCKS), x)
    return x


flow = jax.jit(functools.partial(data_flow, block))


def indicator_of(steps):
    return jnp.full(M * R, -1.0).at[jnp.array(steps)].set(1.0)


@pytest.mark.parametrize("chosen", [(0, 1, 2), (3, 4, 5)])
@pytest.mark.parametrize("turn", range(R))
def test_the_layers_of_one_model_are_that_model(chosen, turn):
    indicator = indicator_of([turn * M + j for j in chosen])
    found = flow(BLOCKS, STREAM, indicator, jnp.ones((M, M)))
    np.testing.assert_allclose(found, layers(chosen), rtol=1e-5, atol=1e-6)


def test_no_layer_is_no_change():
    np.testing.assert_array_equal(flow(BLOCKS, STREAM, jnp.zeros(M * R), SCALES), STREAM)


@given(st.lists(st.booleans(), min_size=M * R, max_size=M * R))
@settings(max_examples=20, derandomize=True, deadline=None)
def test_paths_against_a_plain_loop(taken):
    indicator = jnp.where(jnp.array(taken), 0.3, -0.2)
    x, last = STREAM, None
    for t, on in enumerate(taken):
        if on:
            j = t % M
            scale = 1.0 if last is None else SCALES[last, j]
            x, last = layers([j], scale * x), j
    found = flow(BLOCKS, STREAM, indicator, SCALES)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
    path = flow_path(indicator, SCALES)
    assert [j for j, _ in path] == [t % M for t, on in enumerate(taken) if on]
    for (i, _), (j, scale) in zip(path, path[1:], strict=False):
        assert scale == pytest.approx(float(SCALES[i, j]))
    assert not path or path[0][1] == 1.0


def test_indicators_do_not_compile_anew():
    traced = []

    def counted(params, x):
        traced.append(1)
        return block(params, x)

    run = jax.jit(functools.partial(data_flow, counted))
    run(BLOCKS, STREAM, indicator_of([0, 1]), SCALES)
    once = len(traced)
    run(BLOCKS, STREAM, indicator_of([3, 7, 11]), SCALES)
    assert len(traced) == once


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match="indicator: got 7 entries, takes a multiple of the 6"):
        data_flow(block, BLOCKS, STREAM, jnp.ones(7), SCALES)
    with pytest.raises(ValueError, match="scales: got shape"):
        data_flow(block, BLOCKS, STREAM, jnp.ones(6), jnp.ones((5, 5)))
    with pytest.raises(ValueError, match="blocks: got leading axes"):
        uneven = BLOCKS | {"bias": BLOCKS["bias"][:2]}
        data_flow(block, uneven, STREAM, jnp.ones(6), SCALES)


def sphere(x):
    return -jnp.sum(x * x)


@pytest.mark.parametrize("seed", range(3))
def test_the_sphere_in_fewer_than_1500_evaluations(seed):
    found = evolve(sphere, np.ones(5), sigma=0.3, population=8, generations=187, seed=seed)
    reached = np.flatnonzero(-found.scores.max(1) <= 1e-8)
    assert len(reached) and (reached[0] + 1) * 8 < 1500
    assert found.score == found.scores.max() and found.score >= -1e-8
    np.testing.assert_allclose(sphere(jnp.asarray(found.best, jnp.float32)), found.score, rtol=1e-3)


def test_the_seed_decides_and_bounds_hold():
    def score(x):  # its maximum lies outside
        return x[0] - jnp.abs(x[1] - 0.4)

    run = functools.partial(
        evolve, score, [0.5, 0.5], sigma=1 / 6, generations=15, bounds=(0.0, 1.0)
    )
    first, again, other = run(seed=3), run(seed=3), run(seed=4)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert np.any(first.scores[0] != other.scores[0])
    assert first.scores.shape == (15, 4 + int(3 * np.log(2)))
    assert 0.95 < first.best[0] <= 1.0 and abs(first.best[1] - 0.4) < 0.1


def test_scores_that_are_not_numbers_are_the_worst():
    def score(x):
        return jnp.where(x[0] > 0.5, jnp.nan, x[0])

    found = evolve(score, [0.4, 0.4], sigma=0.1, generations=20, population=6, bounds=(0.0, 1.0))
    assert 0.45 < found.score <= 0.5 and np.isneginf(found.scores).any()


def test_a_search_of_a_merge():
    """Towards the first model in one layer and the last in the other, known by their weights."""
    target = {"layer_0": MODELS[0]["layer_0"], "layer_1": MODELS[2]["layer_1"]}
    vectors = [jax.tree.map(jnp.subtract, model, BASE) for model in MODELS]

    traced = []

    def score(x, vectors, target):
        traced.append(1)
        merged = add_layerwise(BASE, vectors, of_groups(x.reshape(3, 2), BASE, layer))
        gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), merged, target)
        return -sum(jax.tree.leaves(gaps))

    search = functools.partial(evolve, sigma=1 / 6, generations=60, population=10)
    found = search(score, np.full(6, 0.5), vectors, target)
    np.testing.assert_allclose(found.best.reshape(3, 2), [[1, 0], [0, 0], [0, 1]], atol=0.05)
    other = search(score, np.full(6, 0.5), vectors, MODELS[1])
    np.testing.assert_allclose(other.best.reshape(3, 2), [[0, 0], [1, 1], [0, 0]], atol=0.05)
    assert len(traced) == 1


def test_bad_searches_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="start: got shape"):
        evolve(sphere, np.ones((2, 2)), sigma=0.3, generations=1)
    with pytest.raises(ValueError, match="generations: got 0"):
        evolve(sphere, np.ones(2), sigma=0.3, generations=0)
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ImportError, match=r"pip install 'kd_jax\[evolve\]'"):
        evolve(sphere, np.ones(2), sigma=0.3, generations=1)
