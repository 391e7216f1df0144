"""Train and evaluation steps as pure functions: no jit, no mesh, no I/O.

`launch` jits them with shardings and donation; a unit test calls the very same functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.accumulation import exact_grad
from kd_jax.gradients import plain
from kd_jax.trees import Rule, check_same, combine, partition
from kd_jax.types import (
    Batch,
    Context,
    Frozen,
    GradientRule,
    Metrics,
    Objective,
    Output,
    Params,
    TrainState,
    TrainStep,
)

PyTree = Any


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    trains: Rule | None = None,
    gradient: GradientRule | None = None,
    microbatches: int = 1,
) -> TrainStep:
    """A step that moves params along the gradient of the objective's loss.

    trains: rule over paths of params ("model/...", "aux/..."): the part that is differentiated and
        updated, and the only one that has optimiser state; None for all of it.
    gradient: the gradient rule; `gradients.plain()` when None.
    microbatches: how many parts the batch is cut into (part j is rows j::microbatches), one after
        the other; losses and gradients equal the whole batch's, because each term is divided by
        the weight of the whole batch before it is differentiated.

    Metrics: "loss", the value of every term and metric, "grad_norm" (before the optimiser).

    Raises ValueError, here, for microbatches of an objective that couples examples, and, when
    traced, for a term whose weight depends on params or carry.
    """
    rule = gradient or plain()
    if microbatches < 1:
        raise ValueError(f"microbatches: got {microbatches}, takes at least 1")
    if objective.whole_batch and microbatches > 1:
        raise ValueError(
            f"microbatches: got {microbatches}, takes 1: this objective couples the examples of "
            "a batch (whole_batch=True)"
        )

    def split(params: Params) -> tuple[Params, Params]:
        return (
            (params, jax.tree.map(lambda _: None, params))
            if trains is None
            else partition(params, trains)
        )

    def init(key: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        key, init_key = jax.random.split(key)
        aux, carry = objective.init(init_key, params, frozen, batch)
        everything = {"model": params, "aux": aux}
        opt_state = optimizer.init(split(everything)[0])
        return TrainState(jnp.zeros((), jnp.int32), everything, opt_state, carry, key)

    def apply(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, rest = split(state.params)
        loss_key, rule_key, update_key = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        grad = exact_grad(objective, state, rest, frozen, batch, loss_key, microbatches)
        grads, output = rule.gradients(grad, trained, frozen, rule_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, rule.updates(updates, frozen))
        params = combine(trained, rest)
        carry = objective.update(
            state.carry, params, frozen, output, Context(update_key, state.step)
        )
        metrics = _report(output) | {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, carry, state.key), metrics

    return TrainStep(init, apply)


def _report(output: Output) -> Metrics:
    names = [*output.terms, *output.metrics]
    taken = sorted(n for n in set(names) if names.count(n) > 1 or n in ("loss", "grad_norm"))
    if taken:
        raise ValueError(f"terms, metrics: {', '.join(taken)} is taken; give it another name")
    values = {n: term.value for n, term in (output.terms | output.metrics).items()}
    return {"loss": output.loss} | values


def make_eval_step(
    objective: Objective,
) -> Callable[[Params, PyTree, Frozen, Batch], Output]:
    """(params, carry, frozen, batch) -> Output, with ctx.train False and a fixed key.

    Terms and metrics are sums: add them over batches and divide once (`launch.evaluate`).
    """

    def evaluate(params: Params, carry: PyTree, frozen: Frozen, batch: Batch) -> Output:
        ctx = Context(jax.random.key(0), jnp.zeros((), jnp.int32), False)
        if objective.stats is not None:
            stats = objective.stats(params, carry, frozen, batch, ctx)
            ctx = ctx._replace(stats={name: term.value for name, term in stats.items()})
        return objective.loss(params, carry, frozen, batch, ctx)

    return evaluate


def sequence(*steps: TrainStep) -> TrainStep:
    """One step that takes each of `steps` in turn, on the same batch: alternation, two players.

    Each has its own opt_state and carry (tuples in the state, in order), and sees the aux
    parameters that it makes. They are shared by name: a name that two steps make must have the same
    shapes in both and is made by the first. Metrics are prefixed by the place of the step:
    "0/loss", "1/loss".
    """

    def init(key: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        key, init_key = jax.random.split(key)
        keys = jax.random.split(init_key, len(steps))
        states = [s.init(k, params, frozen, batch) for s, k in zip(steps, keys, strict=True)]
        aux: dict[str, PyTree] = {}
        for state in states:
            for name, part in dict(state.params["aux"]).items():
                if name in aux:
                    check_same(f"aux/{name}", part, "the same of an earlier step", aux[name])
                aux.setdefault(name, part)
        return TrainState(
            jnp.zeros((), jnp.int32),
            {"model": params, "aux": aux},
            tuple(s.opt_state for s in states),
            tuple(s.carry for s in states),
            key,
        )

    def apply(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        params, opt_states, carries, metrics = state.params, [], [], {}
        for i, step in enumerate(steps):
            key, aux = jax.random.fold_in(state.key, i), params["aux"]
            made = jax.eval_shape(step.init, key, params["model"], frozen, batch).params["aux"]
            seen = {"model": params["model"], "aux": {name: aux[name] for name in made}}
            own = TrainState(state.step, seen, state.opt_state[i], state.carry[i], key)
            own, new = step(own, frozen, batch)
            params = {"model": own.params["model"], "aux": {**aux, **own.params["aux"]}}
            opt_states.append(own.opt_state)
            carries.append(own.carry)
            metrics |= {f"{i}/{name}": value for name, value in new.items()}
        metrics["loss"] = sum(metrics[f"{i}/loss"] for i in range(len(steps)))
        return (
            TrainState(state.step + 1, params, tuple(opt_states), tuple(carries), state.key),
            metrics,
        )

    return TrainStep(init, apply)


def with_ema(step: TrainStep, decay: float, *, every: int = 1) -> TrainStep:
    """The same step, with ema <- decay * ema + (1 - decay) * params["model"] after each `every`.

    carry becomes {"inner": the step's own carry, "ema": averaged weights in float32, started at
    the initial weights}; evaluate with state.carry["ema"]. With every N steps it is the momentum
    interpolation of slow and fast weights of arXiv 2310.17653 (MCL), whose constants are
    UNVERIFIED; the fast weights go on from where they are.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: got {decay}, takes 0 <= decay < 1")
    if every < 1:
        raise ValueError(f"every: got {every}, takes at least 1")

    def init(key: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        state = step.init(key, params, frozen, batch)
        # A copy even where the dtype is float32 already: the state is donated as a whole.
        ema = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return state._replace(carry={"inner": state.carry, "ema": ema})

    def apply(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        ema = state.carry["ema"]
        state, metrics = step(state._replace(carry=state.carry["inner"]), frozen, batch)
        due = state.step % every == 0

        def follow(e: jax.Array, p: jax.Array) -> jax.Array:
            nearer = decay * e + (1 - decay) * p.astype(jnp.float32)
            return nearer if every == 1 else jnp.where(due, nearer, e)

        ema = jax.tree.map(follow, ema, state.params["model"])
        return state._replace(carry={"inner": state.carry, "ema": ema}), metrics

    return TrainStep(init, apply)


def guard_non_finite(step: TrainStep) -> TrainStep:
    """The same step, but from the first non-finite loss or gradient on the state stays as it was.

    metrics["first_bad_step"] is -1, or the step (counted from 0) whose loss or gradient norm was
    not finite; the state is then the last good one, whatever was dispatched afterwards. carry
    becomes {"inner": the step's own carry, "first_bad_step": int32}.
    """

    def init(key: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        state = step.init(key, params, frozen, batch)
        return state._replace(carry={"inner": state.carry, "first_bad_step": jnp.int32(-1)})

    def apply(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        first_bad = state.carry["first_bad_step"]
        old = state._replace(carry=state.carry["inner"])
        new, metrics = step(old, frozen, batch)
        watched = [v for n, v in metrics.items() if n.split("/")[-1] in ("loss", "grad_norm")]
        finite = jnp.all(jnp.isfinite(jnp.stack(watched)))
        # Once bad, the step is held too, so that a second bad one has the same number.
        first_bad = jnp.where(finite, first_bad, state.step)
        held = jax.tree.map(lambda o, n: jnp.where(first_bad < 0, n, o), old, new)
        carry = {"inner": held.carry, "first_bad_step": first_bad}
        return held._replace(carry=carry), metrics | {"first_bad_step": first_bad}

    return TrainStep(init, apply)
