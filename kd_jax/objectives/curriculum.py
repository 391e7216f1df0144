"""Curriculum temperature: distillation at a temperature that learns to make the task hard."""

import jax
import jax.numpy as jnp

from kd_jax.losses import curriculum
from kd_jax.losses.streaming import over_vocabulary
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, Term, keep, weighted_sum


def curriculum_temperature(
    student: Model,
    teacher: Model,
    *,
    steps: int,
    until: float = 0.5,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """tau^2 KL(teacher || student) at temperature tau, a mean over tokens; tau climbs the loss.

    steps: of the whole training. The aux parameter theta gives tau = 1 + 20 sigmoid(theta), from
        theta = 0. The student descends; theta's gradient is that of the loss times -d, where d
        goes from 0 to 1 in the first `until` of the training (`losses.curriculum.difficulty`).
    Metric `temperature`: tau. The optimiser moves theta like the weights: keep weight decay off
    aux parameters that it should not pull to 0. Li et al. 2022, arXiv 2211.16231 (UNVERIFIED).
    """

    def init(key, params, frozen, batch):
        return {"theta": jnp.zeros(())}, {}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        ours = student.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        theirs = teacher.apply(teacher_policy(params, frozen), batch)
        tau = curriculum.temperature(params["aux"]["theta"])
        values, slopes = over_vocabulary(_row, ours.head, fixed=tau, others=(theirs.head,))
        term = weighted_sum(values, batch["weights"])
        climb = weighted_sum(jax.lax.stop_gradient(slopes), batch["weights"]).total
        against = -curriculum.difficulty(ctx.step / steps, until=until)
        # Worth 0: it only gives theta its reversed gradient.
        total = term.total + against * climb * (tau - jax.lax.stop_gradient(tau))
        metric = Term(jax.lax.stop_gradient(tau) * term.weight, term.weight)
        return Output({"kd": term._replace(total=total)}, {"temperature": metric})

    return Objective(init, loss, keep)


def _row(logits, others, rows, tau) -> tuple[jax.Array, jax.Array]:
    return curriculum.tempered(logits, others[0], tau)
