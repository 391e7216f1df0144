"""One student and several teachers, on one pass over the student's head."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses.mixture import check_weights, mixture_log_probs
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.vocabulary import common
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.distil import TokenLoss, soft_and_hard
from kd_jax.types import Context, Head, Logits, Model, Objective, Output, Policy, weighted_sum


class Teacher(NamedTuple):
    """A teacher, whose weights are frozen[name], and its share; the shares of all sum to 1."""

    model: Model
    share: float


def divergence_from_each(
    student: Model,
    teachers: Mapping[str, Teacher],
    loss: TokenLoss,
    scale: float = 1.0,
    *,
    hard: float = 0.0,
    vocabulary: int | None = None,
    policy: Policy = own_weights,
) -> Objective:
    """scale * sum_i share_i loss(student, teacher_i, targets) + hard * NLL, a mean over tokens.

    teachers: by name. loss, hard, vocabulary: as in `distil.token_divergence`, which this is for
        one teacher. No gradient reaches the teachers; all of them run on the student's tokens.
    With forward KL it differs from `divergence_from_mixture` by a constant, the spread of the
    teachers: sum_i w_i KL(p_i || q) = KL(p || q) + sum_i w_i KL(p_i || p), p = sum_i w_i p_i.
    ValueError: shares that do not sum to 1; a teacher that is not in frozen; heads of different
    sizes without `vocabulary`.
    """
    shares = _shares(teachers)

    def soft(logits, others, targets) -> jax.Array:
        values = [loss(logits, other, targets) for other in others]
        return jnp.stack([w * x for w, x in zip(shares, values, strict=True)]).sum(0)

    models = {name: teacher.model for name, teacher in teachers.items()}
    return against(student, models, soft, scale, hard, vocabulary, policy)


def divergence_from_mixture(
    student: Model,
    teachers: Mapping[str, Teacher],
    loss: TokenLoss,
    scale: float = 1.0,
    *,
    hard: float = 0.0,
    vocabulary: int | None = None,
    policy: Policy = own_weights,
) -> Objective:
    """scale * loss(student, sum_i share_i teacher_i, targets) + hard * NLL, a mean over tokens.

    The ensemble's distribution is the teacher: `losses.mixture.mixture_log_probs` takes the place
    of its logits. Arguments and errors as `divergence_from_each`.
    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    shares = _shares(teachers)

    def soft(logits, others, targets) -> jax.Array:
        return loss(logits, mixture_log_probs(others, shares), targets)

    models = {name: teacher.model for name, teacher in teachers.items()}
    return against(student, models, soft, scale, hard, vocabulary, policy)


def _shares(teachers: Mapping[str, Teacher]) -> list[float]:
    shares = {name: teacher.share for name, teacher in teachers.items()}
    check_weights(shares)
    return list(shares.values())


def against(
    student: Model,
    teachers: Mapping[str, Model],
    soft: Callable[[jax.Array, tuple[jax.Array, ...], jax.Array], jax.Array],
    scale: float,
    hard: float,
    vocabulary: int | None,
    policy: Policy,
) -> Objective:
    """scale * soft(student, teachers, targets) + hard * NLL of the targets, by batch["weights"].

    teachers: by name; their weights are frozen[name]. soft(logits [..., V], the teachers' logits,
        targets int [...]) -> [...]. A mean over tokens, streamed over the vocabulary, or over the
        examples of class logits [B, C]. vocabulary and errors as `divergence_from_each`.
    """
    row = soft_and_hard(soft, scale, hard)

    def heads(params, frozen, batch, **given) -> list[Head]:
        missing = [name for name in teachers if name not in frozen]
        if missing:
            got = ", ".join(sorted(frozen)) or "none"
            raise ValueError(f"frozen: got {got}, takes the teachers {', '.join(missing)}")
        found = {"student": student.apply(policy(params, frozen), batch, **given).head}
        for name, teacher in teachers.items():
            head = teacher.apply(frozen[name], batch).head
            found[f"teacher {name}"] = jax.lax.stop_gradient(head)
        return common(found, vocabulary)

    def init(key, params, frozen, batch):
        jax.eval_shape(heads, {"model": params, "aux": {}}, frozen, batch)
        return {}, {}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        ours, *theirs = heads(params, frozen, batch, key=ctx.key, train=ctx.train)
        weights, targets = batch["weights"], batch["targets"]
        if isinstance(ours, Logits) and ours.z.ndim == 2:
            values = row(ours.logits(), tuple(x.logits() for x in theirs), targets, ())
            return Output({"teachers": weighted_sum(values, weights)})
        term = weighted_sum_over_vocabulary(row, ours, weights, targets, others=theirs)
        return Output({"teachers": term})

    return Objective(init, loss)
