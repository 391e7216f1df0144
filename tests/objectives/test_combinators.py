"""Parts of a sum keep to themselves: aux, carry, keys, stats, state; schedules read the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import batch_of, linear_model, squared_error

from kd_jax.objectives.combinators import add, frozen_weights, on, own_weights, scaled, scheduled
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Objective, Output, weighted_sum

ROWS = 4
MODEL = linear_model()
PARAMS = MODEL.init(jax.random.key(0))


def probe(target: float) -> Objective:
    """(w - target)^2 of an own parameter w, writing all that `update` sees to carry."""

    def init(key, params, frozen, batch):
        names = ("w", "gap", "shift", "state", "step", "drawn", "before")
        carry = {name: jnp.float32(target) for name in names} | {"noise": jnp.zeros(ROWS)}
        return {"w": jax.random.normal(key)}, carry

    def loss(params, carry, frozen, batch, ctx):
        ones = jnp.ones_like(batch["weights"])
        return Output(
            {"gap": weighted_sum((params["aux"]["w"] - target) ** 2 * ones, batch["weights"])},
            {"shift": weighted_sum(ctx.stats["mean"] * ones)},
            {"noise": jax.random.uniform(ctx.key, ones.shape)},
            carry["before"] * batch["inputs"].mean(),
        )

    def update(carry, new_params, frozen, output, ctx):
        return {
            "w": new_params["aux"]["w"],
            "gap": output.terms["gap"].value,
            "shift": output.metrics["shift"].value,
            "state": output.state,
            "step": ctx.step.astype(jnp.float32),
            "drawn": jax.random.uniform(ctx.key),
            "before": carry["before"],
            "noise": output.rows["noise"],
        }

    def stats(params, carry, frozen, batch, ctx):
        mean = (1 + ctx.step) * target * batch["inputs"][:, 0]
        return {"mean": weighted_sum(mean, batch["weights"], 2.0)}

    return Objective(init, loss, update, stats)


def test_each_part_has_its_own_aux_carry_state_stats_and_keys():
    batches = {"left": batch_of(ROWS), "right": batch_of(ROWS, seed=1)}
    objective = add({"a": on("left", probe(1.0)), "b": on("right", probe(-2.0))})
    step = make_train_step(objective, optax.sgd(0.25), microbatches=2)
    state = step.init(jax.random.key(0), PARAMS, {}, batches)
    first, jitted = state.params["aux"], jax.jit(step.apply)
    assert first["a"]["w"] != first["b"]["w"]
    state, metrics = jitted(state, {}, batches)
    for name, target, part in (("a", 1.0, "left"), ("b", -2.0, "right")):
        carry, w, batch = state.carry[name], float(first[name]["w"]), batches[part]
        expected = {
            "w": w - 0.25 * 2 * (w - target),  # what the optimiser made of it
            "gap": (w - target) ** 2,  # the loss of the step, before it
            "shift": 2 * target * np.average(batch["inputs"][:, 0], weights=batch["weights"]),
            "state": target * batch["inputs"].mean(),
            "step": 0.0,
            "before": target,
        }
        for key, value in expected.items():
            np.testing.assert_allclose(carry[key], value, rtol=1e-5, err_msg=f"{name} {key}")
        np.testing.assert_allclose(metrics[f"{name}/gap"], expected["gap"], rtol=1e-5)
        assert state.params["aux"][name]["w"] == carry["w"]
    np.testing.assert_allclose(metrics["loss"], metrics["a/gap"] + metrics["b/gap"], rtol=1e-6)
    after, _ = jitted(state, {}, batches)
    drawn = [s.carry[n][x] for s in (state, after) for n in "ab" for x in ("noise", "drawn")]
    drawn = np.concatenate([np.atleast_1d(x) for x in drawn])
    assert len(set(drawn.tolist())) == drawn.size  # no key twice: rows, microbatches, parts, steps
    assert float(after.carry["a"]["step"]) == 1.0


def test_evaluation_has_the_statistics_of_its_batch():
    batch, objective = batch_of(ROWS), add({"a": probe(3.0)})
    aux, carry = objective.init(jax.random.key(0), PARAMS, {}, batch)
    output = make_eval_step(objective)({"model": PARAMS, "aux": aux}, carry, {}, batch)
    mean = 2 * 3 * np.average(batch["inputs"][:, 0], weights=batch["weights"])
    np.testing.assert_allclose(output.metrics["a/shift"].value, mean, rtol=1e-5)


def test_a_sum_is_whole_batch_if_a_part_is_and_has_stats_if_a_part_has():
    plain = squared_error(MODEL)
    assert add({"a": plain, "b": plain}).stats is None
    assert not add({"a": plain, "b": plain}).whole_batch
    assert add({"a": plain, "b": plain._replace(whole_batch=True)}).whole_batch
    with pytest.raises(ValueError, match="parts: got none"):
        add({})
    with pytest.raises(ValueError, match="parts: got a/b, takes names without /"):
        add({"a/b": plain})


@pytest.mark.slow
def test_a_schedule_reads_the_step_and_scales_terms_only():
    batch = batch_of(ROWS)
    objective = scheduled(scaled(squared_error(MODEL), 3.0), lambda step: 1.0 + step)
    step = make_train_step(objective, optax.sgd(0.0))
    state, seen = step.init(jax.random.key(0), PARAMS, {}, batch), {"loss": [], "size": []}
    for _ in range(3):
        state, metrics = step(state, {}, batch)
        for name, values in seen.items():
            values.append(float(metrics[name]))
    z = np.asarray(batch["inputs"] @ PARAMS["kernel"])
    error = 3.0 * np.average(((z - 1.0) ** 2).mean(-1), weights=batch["weights"])
    np.testing.assert_allclose(seen["loss"], [error, 2 * error, 3 * error], rtol=1e-5)
    size = np.average(np.abs(z).mean(-1), weights=batch["weights"])
    np.testing.assert_allclose(seen["size"], size, rtol=1e-5)


def test_policies_choose_the_weights():
    assert own_weights({"model": 1, "aux": 2}, {"teacher": 3}) == 1
    assert frozen_weights("teacher")({"model": 1}, {"teacher": 3}) == 3
