"""Merges of sharded trees: the numbers of one device, sharded as the base, without gathering."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.average import average, slerp, slerp_rows
from kd_jax.merging.breadcrumbs import breadcrumbs, breadcrumbs_of_leaves
from kd_jax.merging.dare import dare
from kd_jax.merging.della import della
from kd_jax.merging.model_stock import model_stock, model_stock_rows
from kd_jax.merging.rules import by_path, each_layer, layer_gradient
from kd_jax.merging.sparse import by_realised_l1, merge_sparse
from kd_jax.merging.ties import merge_agreeing, ties

SHAPES = {"layers/up": (3, 16, 24), "layers/down": (3, 24, 16), "norm": (16,)}
# Rows (last axes) are split too, and the norm is on every device.
SPECS = {
    "layers/up": P(None, "fsdp", "tensor"),
    "layers/down": P(None, "tensor", "fsdp"),
    "norm": P(),
}
KEY = jax.random.key(1)
on = functools.partial


def sparse(sparsify, **kwargs):
    return on(merge_sparse, sparsify=sparsify, **kwargs)


# (merge, is it the same to the last bit: it has no float sum over devices)
MERGES = {
    "average": (lambda base, models: average([base, *models]), True),
    "slerp": (lambda base, models: slerp(base, models[0], 0.3), False),
    "slerp_rows": (lambda base, models: slerp_rows(base, models[0], 0.3), False),
    "task_arithmetic": (on(task_arithmetic, scale=0.3), True),
    "model_stock": (model_stock, False),
    "model_stock_rows": (model_stock_rows, False),
    "ties": (on(ties, density=0.3), True),
    "ties by leaf": (on(ties, density=0.3, groups=str), True),
    "dare": (sparse(on(dare, drop=0.6), key=KEY), True),
    "dare, L1, signs": (
        sparse(on(dare, drop=0.6, rescale=by_realised_l1), key=KEY, combine=merge_agreeing),
        False,
    ),
    "della": (sparse(on(della, density=0.4), key=KEY), True),
    "breadcrumbs": (sparse(on(breadcrumbs, keep=0.3, remove=0.2)), True),
    "breadcrumbs by leaf": (sparse(on(breadcrumbs_of_leaves, density=0.3, gamma=0.1)), True),
    "by path": (
        by_path(
            [
                ("layers/.*", each_layer(task_arithmetic, scale=layer_gradient([0, 1], 3))),
                (".*", on(ties, density=0.3)),
            ]
        ),
        True,
    ),
}


@functools.cache
def models():
    keys = jax.random.split(jax.random.key(0), 3)
    # Rounded to bfloat16, so that magnitudes are equal here and there.
    return [
        {
            name: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.bfloat16)
            for i, (name, shape) in enumerate(SHAPES.items())
        }
        for key in keys
    ]


def placed():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    return shardings, [jax.device_put(model, shardings) for model in models()]


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGES)
def test_eight_devices_equal_one(name):
    merge, exact = MERGES[name]
    base, *others = models()
    one = jax.jit(merge)(base, others)
    shardings, (base, *others) = placed()
    program = jax.jit(merge).lower(base, others).compile()
    eight = program(base, others)
    for path, x in eight.items():
        assert x.sharding.is_equivalent_to(shardings[path], x.ndim), path
        assert x.dtype == jnp.bfloat16
        got, expected = np.asarray(x, np.float32), np.asarray(one[path], np.float32)
        if exact:
            np.testing.assert_array_equal(got, expected)
        else:  # one step of bfloat16
            np.testing.assert_allclose(got, expected, rtol=2**-7, atol=1e-6)
    assert not re.search(r"\ball-gather", program.as_text())
