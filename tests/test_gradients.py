"""Gradient rules against numbers worked out by hand."""

from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import assert_trees_close, batch_of, linear_model, squared_error

from kd_jax import gradients, optim, steps
from kd_jax.objectives.combinators import add, scaled
from kd_jax.types import Objective, Output, weighted_sum

MODEL = linear_model()


def quadratics(targets: dict[str, tuple[float, float]]) -> Objective:
    """A term |w - target|^2 / 2 for each name; params["model"] = {"w": [2]}."""

    def loss(params, carry, frozen, batch, ctx):
        return Output(
            {
                name: weighted_sum(
                    0.5
                    * jnp.sum((params["model"]["w"] - jnp.array(t)) ** 2)
                    * jnp.ones_like(batch["weights"]),
                    batch["weights"],
                )
                for name, t in targets.items()
            }
        )

    return Objective(lambda *_: ({}, {}), loss)


def gradient_of(rule, objective, w, key=0, microbatches=1):
    step = steps.make_train_step(
        objective, optax.sgd(1.0), gradient=rule, microbatches=microbatches
    )
    batch = {"weights": jnp.ones(2)}
    state = step.init(jax.random.key(key), {"w": jnp.array(w)}, {}, batch)
    new, metrics = jax.jit(step)(state, {}, batch)
    return np.asarray(state.params["model"]["w"] - new.params["model"]["w"]), metrics


def test_plain_is_the_sum_of_the_terms():
    got, metrics = gradient_of(
        gradients.plain(), quadratics({"a": (1, 0), "b": (0, 2)}), (0.0, 0.0)
    )
    np.testing.assert_allclose(got, [-1, -2])
    np.testing.assert_allclose(metrics["loss"], 0.5 + 2.0)


def test_projection_removes_the_conflict_and_only_a_conflict():
    # g_a = (1, 0), g_b = (-1, 1): a loses -1/2 of b, b loses -1 of a (the originals).
    conflict = quadratics({"a": (-1, 0), "b": (1, -1)})
    got, metrics = gradient_of(gradients.surgery(("a", "b")), conflict, (0.0, 0.0))
    np.testing.assert_allclose(got, np.array([0.5, 0.5]) + np.array([0.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 0.5 + 1.0)
    agreeing = quadratics({"a": (-1, 0), "b": (-1, -1)})
    got, _ = gradient_of(gradients.surgery(("a", "b")), agreeing, (0.0, 0.0))
    np.testing.assert_allclose(got, [2, 1], rtol=1e-6)


def test_a_name_is_a_term_or_a_whole_component():
    """ "a" is not the start of "ab"."""
    objective = quadratics({"a": (-1, 0), "ab": (1, -1)})
    got, _ = gradient_of(gradients.surgery(("a", "ab")), objective, (0.0, 0.0))
    np.testing.assert_allclose(got, [0.5, 1.5], rtol=1e-6)


def test_surgery_refuses_to_leave_a_term_out_and_unknown_names():
    objective = quadratics({"a": (1, 0), "b": (0, 2)})
    for names, wrong in ((("a",), "b"), (("a", "b", "b"), "b")):
        with pytest.raises(ValueError, match=f"each term once; not so {wrong}"):
            gradient_of(gradients.surgery(names), objective, (0.0, 0.0))
    with pytest.raises(ValueError, match="only: got 'c', takes one of a, b"):
        gradient_of(gradients.surgery(("a", "c")), objective, (0.0, 0.0))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_sam_takes_the_gradient_nearby(microbatches):
    """For |w|^2 / 2 the gradient is w, so at w + rho w / |w| it is w (1 + rho / |w|)."""
    got, metrics = gradient_of(
        gradients.sam(0.5), quadratics({"a": (0, 0)}), (3.0, 4.0), microbatches=microbatches
    )
    np.testing.assert_allclose(got, np.array([3.0, 4.0]) * 1.1, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 12.5)
    with pytest.raises(ValueError, match="radius: got 0"):
        gradients.sam(0)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_unrolled_differentiates_through_the_inner_steps(microbatches):
    """phi = w - lr (w - a), twice: d outer / dw = (1 - lr)^2 (phi_2 - b)."""
    rule = gradients.unrolled(inner="in", outer="out", steps=2, learning_rate=0.25)
    objective = quadratics({"in": (1, 0), "out": (0, 2)})
    got, _ = gradient_of(rule, objective, (2.0, 2.0), microbatches=microbatches)
    phi = np.array([1, 0]) + 0.75**2 * (np.array([2.0, 2.0]) - np.array([1, 0]))
    np.testing.assert_allclose(got, 0.75**2 * (phi - np.array([0, 2])), rtol=1e-6)
    with pytest.raises(ValueError, match="inner, outer: got in, out, takes each term once"):
        gradient_of(rule, quadratics({"in": (1, 0), "out": (0, 2), "c": (0, 0)}), (2.0, 2.0))


def test_unrolling_does_not_differentiate_statistics_of_the_batch():
    """With s = 2 w fixed, phi = w - lr (w - s) = (1 + lr) w and d phi / dw = 1 - lr."""

    def loss(params, carry, frozen, batch, ctx):
        w, ones = params["model"]["w"][0], jnp.ones_like(batch["weights"])
        return Output(
            {
                "in": weighted_sum(0.5 * (w - ctx.stats["s"]) ** 2 * ones),
                "out": weighted_sum(0.5 * w**2 * ones),
            }
        )

    def stats(params, carry, frozen, batch, ctx):
        return {"s": weighted_sum(2 * params["model"]["w"][0] * jnp.ones_like(batch["weights"]))}

    rule = gradients.unrolled(inner="in", outer="out", steps=1, learning_rate=0.25)
    objective = Objective(lambda *_: ({}, {}), loss, stats=stats)
    got, _ = gradient_of(rule, objective, (2.0,), microbatches=2)
    np.testing.assert_allclose(got, [0.75 * 1.25 * 2.0], rtol=1e-6)


@pytest.mark.slow
def test_masked_coordinates_stay_bitwise_equal_under_decay_and_momentum():
    batch = batch_of(4)
    mask = {"kernel": jnp.zeros((3, 4), bool).at[0].set(True), "bias": jnp.zeros(4, bool)}
    step = steps.make_train_step(
        squared_error(MODEL), optax.adamw(0.1, weight_decay=0.5), gradient=gradients.masked("mask")
    )
    params = MODEL.init(jax.random.key(0))
    params["kernel"] = params["kernel"].at[1, 0].set(-0.0)
    state = step.init(jax.random.key(0), params, {"mask": mask}, batch)
    first = jax.tree.map(jnp.copy, state.params["model"])
    for _ in range(3):
        state, _ = step(state, {"mask": mask}, batch)
    new = state.params["model"]
    bits = lambda x: np.asarray(x).view(np.uint32)  # noqa: E731 - one expression
    assert np.array_equal(bits(new["kernel"][1:]), bits(first["kernel"][1:]))
    assert np.array_equal(bits(new["bias"]), bits(first["bias"]))
    assert np.all(np.asarray(new["kernel"][0]) != np.asarray(first["kernel"][0]))


def test_a_mask_goes_around_another_rule():
    """Of SAM's gradient, and of what another mask leaves."""
    batch = {"weights": jnp.ones(2)}
    rule = gradients.masked("x", gradients.masked("y", gradients.sam(0.5)))
    for y, expected in (((1, 1), [3.3, 0.0]), ((0, 1), [0.0, 0.0])):
        frozen = {"x": {"w": jnp.array([True, False])}, "y": {"w": jnp.array(y)}}
        step = steps.make_train_step(quadratics({"a": (0, 0)}), optim.sgd(1.0), gradient=rule)
        state = step.init(jax.random.key(0), {"w": jnp.array([3.0, 4.0])}, frozen, batch)
        new, metrics = step(state, frozen, batch)
        moved = state.params["model"]["w"] - new.params["model"]["w"]
        np.testing.assert_allclose(moved, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], expected[0], rtol=1e-6)


# The third case is three directions of a plane, at 0, 170 and 200 degrees: there the first, less
# its conflicts with the others, conflicts with itself, which is no reason to project it.
@pytest.mark.parametrize("seed", [0, 1, None])
def test_projection_of_three_gradients_matches_the_algorithm(seed):
    """For three tasks the order matters: the result is that of one of the orders."""
    angles = np.radians([0, 170, 200])
    g = (
        np.stack([np.cos(angles), np.sin(angles)], 1)
        if seed is None
        else np.random.default_rng(seed).normal(size=(3, 5))
    ).astype(np.float32)
    got = jax.vmap(lambda key: gradients.project_conflicts(list(map(jnp.array, g)), key))(
        jax.random.split(jax.random.key(1), 16)
    )

    def projected(i, order):
        x = g[i].copy()
        for j in order:
            if j != i and x @ g[j] < 0:
                x = x - (x @ g[j]) / (g[j] @ g[j]) * g[j]
        return x

    others = [list(permutations([j for j in range(3) if j != i])) for i in range(3)]
    results = np.array([sum(map(projected, range(3), orders)) for orders in product(*others)])
    distances = np.abs(np.asarray(got)[:, None] - results[None]).max(-1)
    assert np.all(distances.min(1) < 1e-5)
    assert len(set(distances.argmin(1).tolist())) > 1  # the order is drawn


def test_a_component_names_all_its_terms():
    objective = add(
        {"a": quadratics({"x": (1, 0), "y": (0, 1)}), "b": scaled(quadratics({"x": (2, 2)}), 0.5)}
    )
    whole, _ = gradient_of(gradients.plain(), objective, (5.0, 6.0))
    parts, _ = gradient_of(
        gradients.surgery(("a", "b"), lambda grads, key: jax.tree.map(jnp.add, *grads)),
        objective,
        (5.0, 6.0),
    )
    assert_trees_close(jnp.array(whole), jnp.array(parts))
