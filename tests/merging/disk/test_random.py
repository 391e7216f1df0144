import numpy as np
import pytest
from support.checkpoints import merged, of_models, write_model

from kd_jax.merging.disk import blocks
from kd_jax.merging.disk.random_bits import Bernoulli

SHAPES = {"model.embed_tokens.weight": (900, 301), "model.layers.0.w": (64, 48), "norm": (333,)}


@pytest.fixture
def two(tmp_path):
    random = np.random.default_rng(0)
    base = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    write_model(tmp_path / "base", base)
    for name in ("first", "second"):
        tuned = {k: x + random.standard_normal(x.shape, np.float32) for k, x in base.items()}
        write_model(tmp_path / name, tuned)
    return tmp_path


def recipe(method="dare_linear", density=0.3, names=("first", "second"), **keys):
    parameters = keys.pop("parameters", None)
    each = {name: {"weight": 1, "density": density} for name in names}
    return of_models(method, each, "base", parameters, **keys)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_neither_threads_nor_blocks_matter(two, method, monkeypatch):
    first = merged(two, recipe(method), "a", threads=1)
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    second = merged(two, recipe(method), "b", threads=3)
    for name in SHAPES:
        # The sums over blocks that rescale are rounded in another order.
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(first[name] == 0, second[name] == 0)


def test_draws_differ_by_seed_tensor_and_model(two):
    unscaled = {"rescale": False}
    base = merged(two, of_models("passthrough", {"base": {}}), "base_out")

    def masks(out, **keys):
        found = merged(two, recipe(parameters=unscaled, **keys), out)
        return {name: found[name] != base[name] for name in found}

    first = masks("a", names=("first",))
    again = masks("b", names=("first",))
    other = masks("c", names=("first",), seed=1)
    alone = masks("d", names=("second",))
    both = masks("e", names=("first", "second"))
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(first[name], again[name])
    # Of independent masks 0.3 * 0.3 + 0.7 * 0.7 = 0.58 of the entries agree.
    assert abs(np.mean(first[name] == other[name]) - 0.58) < 0.01
    np.testing.assert_array_equal(first[name], alone[name])  # the place in the recipe decides
    assert abs(np.mean(both[name]) - (1 - 0.7 * 0.7)) < 0.01
    flat = first["model.layers.0.w"].ravel()
    assert abs(np.mean(flat == first[name].ravel()[: flat.size]) - 0.58) < 0.04


def test_dare_keeps_a_share_and_the_l1_norm(two):
    base = merged(two, of_models("passthrough", {"base": {}}), "base_out")
    tuned = merged(two, of_models("passthrough", {"first": {}}), "first_out")
    found = merged(two, recipe(names=("first",)))
    for name in SHAPES:
        delta, kept = tuned[name] - base[name], found[name] - base[name]
        np.testing.assert_allclose(np.abs(kept).sum(), np.abs(delta).sum(), rtol=1e-3)
        share = np.mean(kept != 0)
        assert abs(share - 0.3) < 4 * np.sqrt(0.21 / delta.size)


def test_della_keeps_the_larger_of_a_row_more_often(two):
    parameters = {"epsilon": 0.25, "rescale": False}
    base = merged(two, of_models("passthrough", {"base": {}}), "base_out")
    tuned = merged(two, of_models("passthrough", {"first": {}}), "first_out")
    found = merged(two, recipe("della_linear", names=("first",), parameters=parameters))
    name = "model.embed_tokens.weight"
    ranks = np.abs(tuned[name] - base[name]).argsort(axis=1).argsort(axis=1)
    kept = found[name] != base[name]
    n = ranks.shape[1]
    for low, high in ((0, 30), (n // 2 - 15, n // 2 + 15), (n - 30, n)):
        here = (ranks >= low) & (ranks < high)
        expected = 0.3 - 0.25 + 0.5 * (low + high - 1) / 2 / (n - 1)
        assert abs(kept[here].mean() - expected) < 4 * np.sqrt(0.25 / here.sum())
    norm = found["norm"] != base["norm"]  # one row
    assert 0.1 < norm.mean() < 0.5


@pytest.mark.parametrize("probability", [0.0, 0.001, 1 / 3, 0.5, 0.998, 1.0])
def test_coins_come_up_as_often_as_they_should(probability):
    coins = Bernoulli(probability, 0, "w", 0)
    drawn = np.concatenate([coins.mask(n, np.empty(n, bool)) for n in (80_000, 8, 119_999)])
    deviation = np.sqrt(probability * (1 - probability) / drawn.size)
    assert abs(drawn.mean() - probability) <= 4 * deviation
