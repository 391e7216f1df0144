"""The largest scores of all leaves together: counts, ties, shards, and what a step then moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import batch_of, linear_model, squared_error

from kd_jax import gradients, steps
from kd_jax.attribution import masks

MODEL = linear_model()
masked = jax.jit(masks.top_mask, static_argnames="ratio")


def tree(x):
    x = jnp.asarray(x, jnp.float32)
    return {"a": x[:5].reshape(5), "b": {"c": x[5:].reshape(3, 5)}}


def flat(mask):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(mask)])


# Few values, so that there are many ties.
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 2.0, 3.0, np.inf]), min_size=20, max_size=20)
)
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.95])
def test_the_largest_of_all_leaves_and_of_ties_the_first(ratio, values):
    kept = int(ratio * 20)
    expected = np.zeros(20, bool)
    expected[np.argsort(-np.abs(np.asarray(values)), kind="stable")[:kept]] = True
    found = masked(tree(values), ratio=ratio)
    assert found["b"]["c"].shape == (3, 5) and found["a"].dtype == bool
    np.testing.assert_array_equal(flat(found), expected)


def test_nothing_and_everything():
    scores = tree(np.arange(20))
    assert not flat(masks.top_mask(scores, ratio=0)).any()
    assert not flat(masks.top_mask(scores, ratio=0.04)).any()  # 0.8 of an entry
    assert flat(masks.top_mask(scores, ratio=1)).all()
    assert flat(masks.top_mask(tree(np.zeros(20)), ratio=0.8)).sum() == 16  # no score, no threshold
    for ratio in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"ratio: got {ratio}, takes a number from 0 to 1"):
            masks.top_mask(scores, ratio=ratio)


def test_masks_nest():
    scores = tree(np.random.default_rng(0).integers(0, 6, 20))
    found = [flat(masks.top_mask(scores, ratio=r)) for r in (0.2, 0.5, 0.8)]
    for small, large in zip(found, found[1:], strict=False):
        assert np.all(large[small])


def test_sharded_scores_have_the_same_mask():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    scores = {
        "w": jnp.asarray(np.random.default_rng(0).integers(0, 9, (8, 6)), jnp.float32),
        "b": jnp.asarray(np.random.default_rng(1).integers(0, 9, 8), jnp.float32),
    }
    placed = {
        "w": jax.device_put(scores["w"], NamedSharding(mesh, P("x", "y"))),
        "b": jax.device_put(scores["b"], NamedSharding(mesh, P("x"))),
    }
    whole, cut = masked(scores, ratio=0.4), masked(placed, ratio=0.4)
    assert cut["w"].sharding.is_equivalent_to(placed["w"].sharding, 2)
    for name in scores:
        np.testing.assert_array_equal(whole[name], cut[name])


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_steps_move_the_chosen_weights_and_no_bit_of_the_others(ratio):
    """SalUn's limits: ratio 0 leaves the model, ratio 1 is the method without a mask."""
    batch, params = batch_of(8), MODEL.init(jax.random.key(0))
    params["kernel"] = params["kernel"].at[0, 0].set(-0.0)
    objective, optimizer = squared_error(MODEL), optax.adamw(0.1, weight_decay=0.5)
    mask = masks.top_mask(params, ratio=ratio)

    def trained(rule, frozen):
        step = steps.make_train_step(objective, optimizer, gradient=rule)
        state = step.init(jax.random.key(0), params, frozen, batch)
        for _ in range(3):
            state, _ = jax.jit(step.apply)(state, frozen, batch)
        return state.params["model"]

    new = trained(gradients.masked("mask"), {"mask": mask})
    free = trained(gradients.plain(), {})
    for name in params:
        here, before, after = (np.asarray(x[name]) for x in (mask, params, new))
        np.testing.assert_array_equal(after.view(np.uint32)[~here], before.view(np.uint32)[~here])
        assert np.all(after[here] != before[here])
        if ratio == 1.0:
            np.testing.assert_allclose(after, free[name], rtol=1e-6)
