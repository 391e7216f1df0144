"""MTARD: a clean teacher on clean images and a robust one on attacked images, balanced.

Training(make_train_step(two_teachers(student, clean, robust), ...), ..., prepare=attacked(student))

Zhao et al. 2022 and 2024 (B-MTARD), arXiv 2306.16170, by released code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses.balance import balanced_share, balanced_temperatures, mean_entropy, mean_kl
from kd_jax.losses.classification import cross_entropy
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.on_policy import draw_keys
from kd_jax.types import (
    Batch,
    Context,
    Frozen,
    Model,
    Objective,
    Output,
    Policy,
    PyTree,
    Term,
    TrainState,
    weighted_sum,
)


def projected_gradient(
    loss: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    start: jax.Array,
    *,
    radius: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 10,
) -> jax.Array:
    """PGD: `steps` ascents of size `step` along the sign of the gradient of loss(images) (a sum).

    images in [0, 1]; the result is within `radius` of them in every element, and in [0, 1]. start:
    where it begins, such as images with a little noise. No gradient goes through it.
    """
    low, high = jnp.maximum(images - radius, 0.0), jnp.minimum(images + radius, 1.0)

    def ascend(_, x: jax.Array) -> jax.Array:
        return jnp.clip(x + step * jnp.sign(jax.grad(loss)(x)), low, high)

    return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, ascend, jnp.clip(start, low, high)))


def attacked(
    model: Model,
    *,
    radius: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 10,
    policy: Policy = own_weights,
    model_state: Callable[[PyTree], PyTree] = lambda carry: carry["model"],
) -> Callable[[TrainState, Frozen, Batch], Batch]:
    """The `prepare` of a training: the batch with "attacked", `projected_gradient` of its inputs.

    Against the cross-entropy of batch["targets"] under the model as it is, in evaluation mode; from
    inputs + 0.001 N(0, 1).
    model_state: where carry has the model's own state, as `two_teachers` has it.
    """

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        weights, own = policy(state.params, frozen), model_state(state.carry)

        def loss(x: jax.Array) -> jax.Array:
            output = model.apply(weights, dict(batch) | {"inputs": x}, state=own)
            return cross_entropy(output.head.logits(), batch["targets"]).sum()

        # By index: an image's noise is the same however the batch is padded.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(draw_keys(state)[0], batch["index"])
        images = batch["inputs"]
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        start = images + 0.001 * noise
        x = projected_gradient(loss, images, start, radius=radius, step=step, steps=steps)
        return dict(batch) | {"attacked": x}

    return prepare


def two_teachers(
    student: Model,
    clean: Model,
    robust: Model,
    *,
    share_rate: float = 0.025,
    temperature_rate: float = 0.001,
    policy: Policy = own_weights,
) -> Objective:
    """w mean_kl(student(x), clean teacher(x)) + (1 - w) mean_kl(student(x'), robust teacher(x')).

    x = batch["inputs"], x' = batch["attacked"] (`attacked`); teachers: frozen["clean"] and
    frozen["robust"] with states frozen["clean_state"] and frozen["robust_state"]. No label loss.
    Carry: "model", the student's state after both passes, clean first; "share" w, from 1/2, by
    `losses.balance.balanced_share` of this step's losses, used at once; "temperatures" of both
    teachers, from 1, by `balanced_temperatures`, used from the next step on; "first", the losses of
    the first step. Weights and temperatures have no gradient. Of the whole batch. Metrics "share",
    "clean_entropy" and "robust_entropy", of the teachers at their temperatures.
    share_rate 0 keeps the halves, temperature_rate 0 is MTARD without the entropies' balance.
    """

    def init(key, params, frozen, batch):
        sides = ("clean", "robust")
        return {}, {
            "model": student.state(),
            "share": jnp.full((), 0.5),
            "temperatures": {name: jnp.ones(()) for name in sides},
            # Below 0 until the first step.
            "first": {name: jnp.full((), -1.0) for name in sides},
        }

    def firsts(carry, now: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {n: jnp.where(x < 0, now[n], x) for n, x in carry["first"].items()}

    def share_of(carry, now: dict[str, jax.Array]) -> jax.Array:
        first = firsts(carry, now)
        progress = {n: now[n] / jnp.maximum(first[n], 1e-12) for n in now}
        both = progress["robust"], progress["clean"]
        return balanced_share(carry["share"], *both, rate=share_rate)

    def loss(params, carry, frozen, batch: Batch, ctx: Context) -> Output:
        weights, state = batch["weights"], carry["model"]
        terms: dict[str, Term] = {}
        metrics: dict[str, Term] = {}
        inputs = {"clean": batch["inputs"], "robust": batch["attacked"]}
        for i, (name, teacher) in enumerate((("clean", clean), ("robust", robust))):
            seen = dict(batch) | {"inputs": inputs[name]}
            held = frozen.get(f"{name}_state", {})
            target = teacher.apply(frozen[name], seen, state=held).head.logits()
            target, tau = jax.lax.stop_gradient(target), carry["temperatures"][name]
            key = jax.random.fold_in(ctx.key, i)
            output = student.apply(
                policy(params, frozen), seen, state=state, key=key, train=ctx.train
            )
            state = output.state
            values = mean_kl(output.head.logits(), target, temperature=tau)
            terms[name] = weighted_sum(values, weights)
            metrics[f"{name}_entropy"] = weighted_sum(
                mean_entropy(target, temperature=tau), weights
            )
        now = {n: jax.lax.stop_gradient(t.value) for n, t in terms.items()}
        share = share_of(carry, now)
        terms = {
            "clean": terms["clean"]._replace(scale=share),
            "robust": terms["robust"]._replace(scale=1 - share),
        }
        metrics["share"] = Term(share, jnp.ones(()))
        return Output(terms, metrics, {}, state)

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        now = {n: t._replace(scale=1.0).value for n, t in output.terms.items()}
        taus = carry["temperatures"]
        entropies = (output.metrics[f"{n}_entropy"].value for n in ("robust", "clean"))
        of_robust, of_clean = balanced_temperatures(
            taus["robust"], taus["clean"], *entropies, rate=temperature_rate
        )
        return {
            "model": output.state,
            "share": share_of(carry, now),
            "temperatures": {"clean": of_clean, "robust": of_robust},
            "first": firsts(carry, now),
        }

    return Objective(init, loss, update, whole_batch=True)
