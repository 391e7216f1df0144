"""Layers on a line and in stages: the card's numbers, gradients, and networks that run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.linear import assert_trees_close

from kd_jax.models.learngene import in_stages, linear_genes, on_a_line, stage_genes
from kd_jax.models.vit import ViTConfig, vit

CONFIG = ViTConfig(image=4, patch=2, channels=1, width=4, depth=3, heads=2, mlp=6, classes=3)
KEY = jax.random.key(0)
IMAGES = {"inputs": jax.random.normal(jax.random.key(1), (2, 4, 4, 1))}


def test_the_cards_line():
    genes = {"shared": {}, "base": jnp.array([1.0, 2.0]), "slope": jnp.array([0.5, -1.0])}
    found = on_a_line(genes, 4)
    want = [[1, 2], [1.125, 1.75], [1.25, 1.5], [1.375, 1.25]]
    np.testing.assert_allclose([found[f"block_{i}"] for i in range(4)], want)
    np.testing.assert_allclose(on_a_line(genes, 1)["block_0"], [1, 2])
    flat = on_a_line(genes | {"slope": jnp.zeros(2)}, 3)
    assert all((flat[f"block_{i}"] == genes["base"]).all() for i in range(3))


def logits(params, depth):
    return vit(dataclasses.replace(CONFIG, depth=depth)).apply(params, IMAGES).head.logits()


@pytest.mark.slow
def test_a_line_makes_networks_of_any_depth_with_its_gradient():
    genes = linear_genes(CONFIG, KEY)
    base, slope = genes["base"], genes["slope"]
    assert float(jnp.abs(base["mlp"]["up"]["kernel"]).max()) <= 0.04
    assert (base["mlp_norm"]["scale"] == 1).all() and (slope["mlp_norm"]["scale"] == 0).all()
    assert np.any(slope["attn"]["q"]["kernel"] != base["attn"]["q"]["kernel"])
    for depth in (1, 3):
        params = on_a_line(genes, depth)
        expected = vit(dataclasses.replace(CONFIG, depth=depth)).init(KEY)
        assert jax.tree.structure(params) == jax.tree.structure(expected)
        assert np.isfinite(logits(params, depth)).all()

    def of(f):
        return jax.jit(jax.grad(lambda x: jnp.square(f(x)).sum()))

    of_genes = of(lambda g: logits(on_a_line(g, 3), 3))(genes)
    blocks = of(lambda p: logits(p, 3))(on_a_line(genes, 3))
    want = jax.tree.map(
        lambda *g: sum(i / 3 * x for i, x in enumerate(g)),
        *(blocks[f"block_{i}"] for i in range(3)),
    )
    assert_trees_close(of_genes["slope"], want)
    want = jax.tree.map(lambda *g: sum(g), *(blocks[f"block_{i}"] for i in range(3)))
    assert_trees_close(of_genes["base"], want)


def test_stages_are_repeated_in_order():
    genes = stage_genes(CONFIG, KEY, 3)
    plain = vit(CONFIG).init(KEY)
    assert_trees_close(in_stages(genes, (1, 1, 1)), plain)
    params = in_stages(genes, (2, 0, 1))
    for i, stage in enumerate((0, 0, 2)):
        assert_trees_close(params[f"block_{i}"], plain[f"block_{stage}"])
    assert np.isfinite(logits(in_stages(genes, (1, 2, 1)), 4)).all()

    def of(f):
        return jax.jit(jax.grad(lambda x: jnp.square(f(x)).sum()))

    of_genes = of(lambda g: logits(in_stages(g, (1, 2, 0)), 3))(genes)
    blocks = of(lambda p: logits(p, 3))(in_stages(genes, (1, 2, 0)))
    both = jax.tree.map(jnp.add, blocks["block_1"], blocks["block_2"])
    assert_trees_close(of_genes["stage_1"], both)
    assert not any(np.any(x) for x in jax.tree.leaves(of_genes["stage_2"]))


def test_bad_numbers_are_named():
    genes = stage_genes(CONFIG, KEY, 2)
    for repeats in ((1,), (1, -1), (0, 0)):
        with pytest.raises(ValueError, match="repeats: got .*, takes a number for each of 2"):
            in_stages(genes, repeats)
    with pytest.raises(ValueError, match="depth, stages: got 0"):
        stage_genes(CONFIG, KEY, 0)
