"""Steps: exact accumulation, what is checked, wrappers, one trace, many devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close, batch_of, linear_model, squared_error

from kd_jax import steps
from kd_jax.objectives.combinators import add, on, scheduled
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_accuracy, label_cross_entropy
from kd_jax.optim import float32_masters
from kd_jax.types import GradientRule, Objective, Output, Term, weighted_sum

MODEL = linear_model()
KEY = jax.random.key(3)


def start(step, batch, frozen=None):
    return step.init(KEY, MODEL.init(jax.random.key(0)), frozen or {}, batch)


@pytest.mark.parametrize("count", [2, 4])
def test_microbatches_change_nothing(count):
    """A mean of microbatch means would differ: the weights are uneven."""
    batch = batch_of(8)
    objective = add(
        {
            "label": supervise(MODEL, {"ce": label_cross_entropy}, metrics={"hit": label_accuracy}),
            "size": scheduled(squared_error(MODEL), lambda step: 0.1 * (step + 1)),
        }
    )

    def keep_rows(carry, new_params, frozen, output, ctx):
        return output.rows

    results = []
    for k in (1, count):
        seen = objective._replace(update=keep_rows)
        step = steps.make_train_step(seen, optax.adam(0.1), microbatches=k)
        state = start(step, batch)
        results.append(jax.jit(step)(state, {}, batch))
    assert_trees_close(*results)


def test_microbatch_values_by_hand():
    """The loss is the whole batch's weighted mean, and the update follows its gradient."""
    batch, step = (
        batch_of(4),
        steps.make_train_step(squared_error(MODEL), optax.sgd(1.0), microbatches=2),
    )
    state = start(step, batch)

    def loss(params):
        z = batch["inputs"] @ params["kernel"] + params["bias"][None]
        return jnp.average(((z - 1.0) ** 2).mean(-1), weights=batch["weights"])

    value, slope = jax.value_and_grad(loss)(state.params["model"])
    new, metrics = jax.jit(step)(state, {}, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - g, state.params["model"], slope)
    assert_trees_close(new.params["model"], expected)
    assert int(new.step) == 1


def test_gradients_of_bfloat16_parameters_are_added_up_in_float32():
    """1 + 7 / 256: in bfloat16, where 1 + 1 / 256 is 1, nothing of the small ones would be left."""

    def loss(params, carry, frozen, batch, ctx):
        return Output({"x": weighted_sum(params["model"]["w"] * batch["x"])})

    def gradients(grad, params, frozen, key):
        grads, output = grad(params)
        assert grads["model"]["w"].dtype == params["model"]["w"].dtype == jnp.bfloat16
        return grads, output

    step = steps.make_train_step(
        Objective(lambda *_: ({}, {}), loss),
        optax.sgd(8.0),
        gradient=GradientRule(gradients),
        microbatches=8,
    )
    batch = {"x": jnp.array([1.0] + [1 / 256] * 7, jnp.bfloat16)}
    state = step.init(KEY, {"w": jnp.zeros((), jnp.bfloat16)}, {}, batch)
    new, _ = step(state, {}, batch)
    assert new.params["model"]["w"] == jnp.asarray(-(1 + 7 / 256), jnp.bfloat16) < -1


def test_refusals_are_raised_when_built_or_traced():
    coupled = squared_error(MODEL)._replace(whole_batch=True)
    with pytest.raises(ValueError, match="couples the examples"):
        steps.make_train_step(coupled, optax.sgd(1.0), microbatches=2)
    with pytest.raises(ValueError, match="microbatches: got 0"):
        steps.make_train_step(coupled, optax.sgd(1.0), microbatches=0)
    step = steps.make_train_step(squared_error(MODEL), optax.sgd(1.0), microbatches=3)
    with pytest.raises(ValueError, match="microbatches: got 3, takes a divisor"):
        step(start(step, batch_of(4)), {}, batch_of(4))


@pytest.mark.parametrize("source", ["params", "carry"])
def test_a_weight_that_depends_on_params_or_carry_is_refused(source):
    def loss(params, carry, frozen, batch, ctx):
        by = params["model"]["bias"].sum() if source == "params" else carry["scale"]
        return Output({"bad": Term(params["model"]["kernel"].sum(), 1.0 + by)})

    objective = Objective(lambda *_: ({}, {"scale": jnp.float32(2)}), loss)
    step = steps.make_train_step(objective, optax.sgd(1.0))
    with pytest.raises(ValueError, match="the weight of bad depends on params, carry"):
        step(start(step, batch_of(4)), {}, batch_of(4))


def test_trains_leaves_the_rest_bitwise_and_without_optimiser_state():
    batch = batch_of(4)
    step = steps.make_train_step(squared_error(MODEL), optax.adam(0.1), trains="model/kernel")
    state = start(step, batch)
    new, _ = step(state, {}, batch)
    assert np.array_equal(new.params["model"]["bias"], state.params["model"]["bias"])
    assert not np.array_equal(new.params["model"]["kernel"], state.params["model"]["kernel"])
    assert all(np.shape(x) in ((), (3, 4)) for x in jax.tree.leaves(state.opt_state))


def test_one_trace_for_many_steps_and_the_same_numbers_under_jit():
    batch, step = batch_of(4), steps.make_train_step(squared_error(MODEL), optax.adam(0.1))
    jitted = jax.jit(chex.assert_max_traces(step.apply, 1), donate_argnums=0)
    plain, fast = start(step, batch), start(step, batch)
    for _ in range(3):
        plain, _ = step(plain, {}, batch)
        fast, _ = jitted(fast, {}, batch)
    assert_trees_close(plain, fast)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_eight_devices_give_the_same_numbers(shape):
    batch, step = (
        batch_of(8),
        steps.make_train_step(
            supervise(MODEL, {"ce": label_cross_entropy}), optax.adam(0.1), microbatches=1
        ),
    )
    expected = step(start(step, batch), {}, batch)
    mesh = Mesh(
        np.array(jax.devices()).reshape(shape), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2
    )
    state = jax.device_put(start(step, batch), NamedSharding(mesh, P()))
    columns = NamedSharding(mesh, P(None, "tensor" if shape[1] > 1 else None))
    model = state.params["model"] | {
        "kernel": jax.device_put(state.params["model"]["kernel"], columns)
    }
    state = state._replace(params={"model": model, "aux": {}})
    got = jax.jit(step.apply)(state, {}, jax.device_put(batch, NamedSharding(mesh, P("data"))))
    assert_trees_close(expected, got)


def test_eval_step_returns_sums_and_does_not_train():
    batch = batch_of(6)
    evaluate = steps.make_eval_step(supervise(MODEL, {"ce": label_cross_entropy}))
    params = {"model": MODEL.init(jax.random.key(0)), "aux": {}}
    halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    evaluate = jax.jit(evaluate)
    whole = evaluate(params, {}, {}, batch).terms["ce"]
    parts = [evaluate(params, {}, {}, half).terms["ce"] for half in halves]
    np.testing.assert_allclose(whole.total, sum(p.total for p in parts), rtol=1e-6)
    np.testing.assert_allclose(whole.weight, sum(p.weight for p in parts), rtol=1e-6)


def test_ema_follows_the_recurrence():
    batch = batch_of(4)
    step = steps.with_ema(steps.make_train_step(squared_error(MODEL), optax.sgd(0.1)), 0.9)
    state = start(step, batch)
    first = state.params["model"]["bias"]
    expected = first
    for _ in range(3):
        state, _ = step(state, {}, batch)
        expected = 0.9 * expected + 0.1 * state.params["model"]["bias"]
    np.testing.assert_allclose(state.carry["ema"]["bias"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="decay: got 1.0"):
        steps.with_ema(step, 1.0)


def test_slow_weights_follow_every_few_steps():
    batch = batch_of(4)
    inner = steps.make_train_step(squared_error(MODEL), optax.sgd(0.1))
    step = steps.with_ema(inner, 0.75, every=2)
    state = start(step, batch)
    expected = state.params["model"]["bias"]
    for i in range(1, 6):
        state, _ = step(state, {}, batch)
        if i in (2, 4):
            expected = 0.75 * expected + 0.25 * state.params["model"]["bias"]
        np.testing.assert_allclose(state.carry["ema"]["bias"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="every: got 0, takes at least 1"):
        steps.with_ema(inner, 0.9, every=0)


def test_guard_keeps_the_last_good_state_and_names_the_first_bad_step():
    batch = batch_of(4)
    step = steps.guard_non_finite(steps.make_train_step(squared_error(MODEL), optax.adam(0.1)))
    state = start(step, batch)
    good, metrics = step(state, {}, batch)
    assert int(metrics["first_bad_step"]) == -1
    bad = batch | {"inputs": batch["inputs"].at[1, 0].set(jnp.inf)}
    held, metrics = step(good, {}, bad)
    assert int(metrics["first_bad_step"]) == 1
    held, metrics = step(held, {}, bad)
    assert int(metrics["first_bad_step"]) == 1
    after, metrics = step(held, {}, batch)
    assert int(metrics["first_bad_step"]) == 1
    for name in ("params", "opt_state", "step", "key"):
        assert_trees_close(getattr(after, name), getattr(good, name), rtol=0, atol=0)


def test_the_guard_watches_the_loss_and_the_gradient():
    """A constant may be infinite with a finite gradient, a square root zero with none."""

    def loss(params, carry, frozen, batch, ctx):
        w = params["model"]["w"]
        value = w + batch["offset"].sum() + jnp.sqrt(w * batch["root"].sum())
        return Output({"x": weighted_sum(value[None])})

    inner = steps.make_train_step(Objective(lambda *_: ({}, {}), loss), optax.sgd(0.1))
    step = steps.guard_non_finite(inner)
    fine = {"offset": jnp.zeros(1), "root": jnp.ones(1)}
    state = step.init(KEY, {"w": jnp.float32(1.0)}, {}, fine)
    for batch, first_bad, names in (
        (fine, -1, []),
        (fine | {"offset": jnp.full(1, jnp.inf)}, 0, ["loss"]),
        (fine | {"root": jnp.zeros(1)}, 0, ["grad_norm"]),
    ):
        _, metrics = step(state, {}, batch)
        assert int(metrics["first_bad_step"]) == first_bad
        bad = [n for n in ("loss", "grad_norm") if not np.isfinite(metrics[n])]
        assert bad == names


def test_parts_of_a_batch_that_are_missing_are_named():
    step = steps.make_train_step(on("forget", squared_error(MODEL)), optax.sgd(1.0))
    with pytest.raises(ValueError, match="takes 'forget'"):
        start(step, {"retain": batch_of(4)})
        step(start(step, {"forget": batch_of(4)}), {}, {"retain": batch_of(4)})


def test_names_that_a_step_reports_itself_are_refused():
    ones = lambda batch: weighted_sum(batch["weights"])  # noqa: E731 - one expression
    for terms, metrics, name in (
        (("loss", "x"), (), "loss"),
        (("x",), ("grad_norm",), "grad_norm"),
        (("x",), ("x",), "x"),
    ):

        def loss(params, carry, frozen, batch, ctx, terms=terms, metrics=metrics):
            return Output({n: ones(batch) for n in terms}, {n: ones(batch) for n in metrics})

        step = steps.make_train_step(Objective(lambda *_: ({}, {}), loss), optax.sgd(1.0))
        with pytest.raises(ValueError, match=f"terms, metrics: {name} is taken"):
            step(start(step, batch_of(4)), {}, batch_of(4))


@pytest.mark.parametrize("source", ["frozen", "key"])
def test_weights_may_depend_on_the_teacher_and_on_the_key(source):
    """Each term is divided by what all microbatches weigh together, found before they are run."""

    def loss(params, carry, frozen, batch, ctx):
        z = MODEL.apply(params["model"], batch).head.logits()
        if source == "frozen":
            confidence = jax.nn.softmax(MODEL.apply(frozen["teacher"], batch).head.logits()).max(-1)
        else:
            confidence = jax.random.uniform(ctx.key, z.shape[:1])
        error = jnp.mean((z - 1.0) ** 2, -1)
        return Output({"error": weighted_sum(error, confidence)}, {}, {"w": confidence})

    def update(carry, new_params, frozen, output, ctx):
        return output.rows["w"]

    objective = Objective(lambda *_: ({}, jnp.zeros(8)), loss, update)
    frozen, batch = {"teacher": MODEL.init(jax.random.key(9))}, batch_of(8)
    step = steps.make_train_step(objective, optax.sgd(0.5), microbatches=4)
    state = start(step, batch, frozen)
    new, metrics = jax.jit(step)(state, frozen, batch)  # a step is a function to jit, too

    def by_hand(params):
        z = batch["inputs"] @ params["kernel"] + params["bias"][None]
        return jnp.average(((z - 1.0) ** 2).mean(-1), weights=new.carry)

    value, slope = jax.value_and_grad(by_hand)(state.params["model"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert len(set(np.asarray(new.carry).tolist())) == 8
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, state.params["model"], slope)
    assert_trees_close(new.params["model"], moved)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(slope), rtol=1e-5)


def test_a_state_may_be_donated_as_a_whole_whatever_wraps_the_step():
    """No two leaves share a buffer: not the EMA, nor the masters of float32 parameters."""
    batch = batch_of(4)
    inner = steps.make_train_step(squared_error(MODEL), float32_masters(optax.sgd(0.1)))
    step = steps.guard_non_finite(steps.with_ema(inner, 0.9))
    donated = jax.jit(step.apply, donate_argnums=0)
    state, _ = donated(start(step, batch), {}, batch)
    assert_trees_close(state, step(start(step, batch), {}, batch)[0])


def own_parameter(name, target):
    """(aux parameter - target)^2 / 2; other steps' aux parameters are out of sight."""

    def loss(params, carry, frozen, batch, ctx):
        assert set(params["aux"]) == {name}
        error = (
            0.5 * (params["aux"][name]["w"] - target) ** 2 + (params["model"]["bias"] ** 2).sum()
        )
        drawn = jax.random.uniform(ctx.key, batch["weights"].shape)
        return Output(
            {"error": weighted_sum(error * batch["weights"] ** 0, batch["weights"])},
            {"drawn": weighted_sum(drawn)},
        )

    def init(key, params, frozen, batch):
        return {name: {"w": jax.random.normal(key)}}, {}

    return Objective(init, loss)


def test_steps_of_a_sequence_have_their_own_optimisers_carries_and_aux():
    """Adam's state of one would not fit the aux parameters of the other."""
    batch = batch_of(4)
    step = steps.sequence(
        steps.with_ema(steps.make_train_step(own_parameter("a", 1.0), optax.sgd(0.5)), 0.9),
        steps.make_train_step(own_parameter("b", -1.0), optax.adam(0.1)),
        steps.make_train_step(squared_error(MODEL), optax.sgd(0.1)),
    )
    state = start(step, batch)
    first = state.params["aux"]
    assert set(first) == {"a", "b"} and first["a"]["w"] != first["b"]["w"]
    new, metrics = jax.jit(step.apply)(state, {}, batch)
    np.testing.assert_allclose(new.params["aux"]["a"]["w"], (first["a"]["w"] + 1) / 2, rtol=1e-6)
    sign = np.sign(first["b"]["w"] + 1)
    np.testing.assert_allclose(new.params["aux"]["b"]["w"], first["b"]["w"] - 0.1 * sign, rtol=1e-4)
    assert set(new.carry[0]) == {"inner", "ema"}
    assert metrics["0/drawn"] != metrics["1/drawn"]
    assert_trees_close(new.carry[0]["ema"]["kernel"], state.params["model"]["kernel"])
    assert not np.array_equal(new.params["model"]["kernel"], state.params["model"]["kernel"])
    total = metrics["0/loss"] + metrics["1/loss"] + metrics["2/loss"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_steps_of_a_sequence_must_agree_on_aux_that_they_share():
    other = own_parameter("a", 1.0)._replace(init=lambda *_: ({"a": {"w": jnp.zeros(2)}}, {}))
    made = [steps.make_train_step(o, optax.sgd(0.1)) for o in (own_parameter("a", 1.0), other)]
    with pytest.raises(ValueError, match="aux/a and the same of an earlier step differ: w is"):
        start(steps.sequence(*made), batch_of(4))
