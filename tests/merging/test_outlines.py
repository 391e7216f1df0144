"""Policies for models of other outlines: what exactly they keep and fill in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.average import average
from kd_jax.merging.outlines import intersect, pad, restore

BASE = {"embed": jnp.arange(6.0).reshape(3, 2), "w": jnp.ones(2), "base_only": jnp.zeros(2)}
LONGER = {"embed": 10 + jnp.arange(8.0).reshape(4, 2), "w": jnp.full(2, 2.0)}
SHORTER = {"embed": 20 + jnp.arange(4.0).reshape(2, 2), "w": jnp.zeros(2), "new": jnp.full(3, 5.0)}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_intersect_keeps_what_all_have():
    base, (longer, shorter) = intersect(BASE, [LONGER, SHORTER])
    same(base, {"embed": BASE["embed"][:2], "w": BASE["w"]})
    same(longer, {"embed": LONGER["embed"][:2], "w": LONGER["w"]})
    same(shorter, {"embed": SHORTER["embed"], "w": SHORTER["w"]})
    merged = restore(BASE, average([longer, shorter]))
    mean = (LONGER["embed"][:2] + SHORTER["embed"]) / 2
    same(merged, BASE | {"embed": BASE["embed"].at[:2].set(mean), "w": jnp.ones(2)})


def test_pad_fills_in_from_the_base_and_from_the_models():
    base, (longer, shorter) = pad(BASE, [LONGER, SHORTER])
    last = LONGER["embed"][3:]  # of one model alone: everyone's
    everywhere = {"new": SHORTER["new"], "base_only": BASE["base_only"]}
    same(base, BASE | everywhere | {"embed": jnp.concatenate([BASE["embed"], last])})
    same(longer, LONGER | everywhere)
    filled = jnp.concatenate([SHORTER["embed"], BASE["embed"][2:], last])
    same(shorter, SHORTER | everywhere | {"embed": filled})
    merged = task_arithmetic(base, [longer, shorter], scale=1.0)
    same(merged["embed"][3:], last)
    same(merged["new"], SHORTER["new"])
    same(merged["embed"][2], LONGER["embed"][2])


def test_pad_gives_the_base_the_mean_of_several_models():
    longer = [{"w": jnp.array([1.0, x])} for x in (2.0, 4.0)]
    base, models = pad({"w": jnp.ones(1)}, longer)
    same(base, {"w": jnp.array([1.0, 3.0])})
    same(models, longer)
    base, _ = pad({"w": jnp.ones((1, 2))}, [{"w": jnp.full((2, 1), 2.0)}])
    same(base, {"w": jnp.array([[1.0, 1.0], [2.0, 0.0]])})


def test_equal_trees_are_left_alone():
    for policy in (intersect, pad):
        base, models = policy(BASE, [BASE, BASE])
        for tree in (base, *models):
            same(tree, BASE)
    same(restore(BASE, BASE), BASE)


def test_dtypes():
    base = {"w": jnp.ones(2, jnp.bfloat16), "v": jnp.ones(1, jnp.bfloat16)}
    _, (model,) = pad(base, [{"w": jnp.ones(3)}])
    assert (model["w"].dtype, model["v"].dtype) == (jnp.float32, jnp.bfloat16)
    grown, _ = pad(base, [{"w": jnp.ones(3), "n": jnp.ones(1, jnp.float16)}])
    assert (grown["w"].dtype, grown["n"].dtype) == (jnp.bfloat16, jnp.float16)
    assert restore(base, {"w": jnp.zeros(1)})["w"].dtype == jnp.bfloat16


def test_errors_name_the_paths():
    with pytest.raises(ValueError, match=r"w: takes one number of axes .* \(2,\), \(2, 1\)"):
        pad({"w": jnp.ones(2)}, [{"w": jnp.ones((2, 1))}])
    with pytest.raises(ValueError, match="share no path with the base"):
        intersect({"w": jnp.ones(2)}, [{"v": jnp.ones(2)}])
    with pytest.raises(ValueError, match=r"does not fit into the base: v \(2,\), w \(3,\)"):
        restore({"w": jnp.ones(2)}, {"w": jnp.ones(3), "v": jnp.ones(2)})
