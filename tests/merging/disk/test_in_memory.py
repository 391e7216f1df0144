"""The merges on disk give what the merges in memory give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoints import merged, of_models, write_model

from kd_jax.merging import arithmetic, average, breadcrumbs, model_stock, ties


def both(**parameters):
    return {"first": parameters, "second": parameters}


def arrays(seed, base=None):
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (70, 13), "model.layers.0.w": (37, 5), "norm": (40,)}
    found = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {k: base[k] + x / 8 for k, x in found.items()} if base else found


def tree(x):
    return {name: jnp.asarray(value) for name, value in x.items()}


@pytest.mark.parametrize(
    ("recipe", "in_memory"),
    [
        (
            of_models("linear", {"first": {"weight": 1}, "second": {"weight": 3}}),
            lambda base, models: average.average(models, [1.0, 3.0]),
        ),
        (
            of_models("slerp", {"first": {}, "base": {}}, "base", {"t": 0.3}),
            lambda base, models: average.slerp(base, models[0], 0.3),
        ),
        (
            of_models("task_arithmetic", both(weight=0.4), "base"),
            lambda base, models: arithmetic.task_arithmetic(base, models, scale=0.4),
        ),
        (
            of_models(
                "ties", both(weight=1, density=0.2), "base", {"lambda": 0.7}, threshold="flat"
            ),
            lambda base, models: ties.ties(base, models, density=0.2, scale=0.7),
        ),
        (
            of_models("breadcrumbs", both(weight=0.5, density=0.7, gamma=0.05), "base"),
            lambda base, models: arithmetic.add_task_vectors(
                base,
                [
                    breadcrumbs.breadcrumbs_of_leaves(
                        arithmetic.task_vector(base, model), density=0.7, gamma=0.05
                    )
                    for model in models
                ],
                scale=0.5,
            ),
        ),
        (
            of_models("model_stock", {"first": {}, "second": {}}, "base"),
            lambda base, models: model_stock.model_stock(base, models),
        ),
    ],
    ids=lambda x: x["merge_method"] if isinstance(x, dict) else "",
)
def test_the_same_as_in_memory(tmp_path, recipe, in_memory):
    # Odd seeds round, and votes that cancel are the one case that flat TIES decides otherwise.
    base = arrays(0)
    models = [arrays(1, base), arrays(2, base)]
    for name, x in zip(("base", "first", "second"), (base, *models), strict=True):
        write_model(tmp_path / name, x)
    expected = jax.jit(in_memory)(tree(base), [tree(model) for model in models])
    found = merged(tmp_path, recipe)
    assert set(found) == set(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6), found, dict(expected)
    )
