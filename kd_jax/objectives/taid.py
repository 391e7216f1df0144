"""TAID: distillation towards a target between the student and its teacher."""

import jax

from kd_jax.losses import taid as losses
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.vocabulary import common
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import Context, Head, Model, Objective, Output, Policy, Term


def taid(
    student: Model,
    teacher: Model,
    *,
    steps: int,
    start: float = 0.4,
    end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
    vocabulary: int | None = None,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """-sum_v p_v log q_v, p = softmax((1 - c) sg(student) + c teacher), a mean over tokens.

    steps: of the whole training, in which c goes from start to end: with time at least, and faster
        while the loss falls (`losses.taid.advance`). The clock is the carry; it moves once a step,
        by the loss over all devices and microbatches, and never in an evaluation.
    vocabulary: as in `distil.token_divergence`.
    Metric `share`: c. Shing et al. 2025, arXiv 2501.16937; alpha and beta after released code.
    """

    def heads(params, frozen, batch, **given) -> list[Head]:
        ours = student.apply(policy(params, frozen), batch, **given)
        theirs = teacher.apply(teacher_policy(params, frozen), batch)
        return common({"student": ours.head, "teacher": theirs.head}, vocabulary)

    def init(key, params, frozen, batch):
        jax.eval_shape(heads, {"model": params, "aux": {}}, frozen, batch)
        return {}, losses.clock(start)

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        ours, theirs = heads(params, frozen, batch, key=ctx.key, train=ctx.train)
        term = weighted_sum_over_vocabulary(
            _row, ours, batch["weights"], fixed=carry.share, others=(theirs,)
        )
        return Output({"taid": term}, {"share": Term(carry.share * term.weight, term.weight)})

    def update(carry, new_params, frozen, output: Output, ctx: Context) -> losses.Clock:
        return losses.advance(
            carry,
            output.terms["taid"].value,
            ctx.step / steps,
            start=start,
            end=end,
            alpha=alpha,
            beta=beta,
        )

    return Objective(init, loss, update)


def _row(logits, others, rows, share) -> jax.Array:
    return losses.taid(logits, others[0], share=share)
