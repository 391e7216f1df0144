"""A teacher with a tokeniser of its own: student and teacher meet where both have read the same.

A batch is the student's text batch, with the teacher's in batch["teacher"], and in batch["pairs"]
the positions to compare: {"student", "teacher": int [B, P], "weights": [B, P]}, as
`data.alignment` finds them. Both models run on their own tokens; hidden states are picked at the
pairs before they are multiplied out, so that no logits of other positions are made.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.universal import universal_logit_distance
from kd_jax.losses.vocabulary import chosen
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Batch, Context, Head, Model, Objective, Output, Policy, stateless

# (student's logits [..., K], teacher's logits [..., K]) -> [...], both of the tokens they share
PairLoss = Callable[[jax.Array, jax.Array], jax.Array]


def universal_logits(
    student: Model,
    teacher: Model,
    scale: float = 1.0,
    *,
    hard: float = 0.0,
    temperature: float = 1.0,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """scale * ULD, a mean over pairs, + hard * NLL of the student's targets, a mean over tokens.

    ULD is `losses.universal.universal_logit_distance`: of the two vocabularies nothing needs to be
    known. Alone it does not say which token is meant; the paper adds it to the NLL. Boizard et al.
    2024, arXiv 2402.12030; positions are paired by what has been read, where the released code
    counts tokens (`data.alignment.pairs_in_order`). No gradient reaches the teacher.
    Terms: "universal", and "nll" unless hard is 0.
    """

    def row(logits, others, rows, fixed) -> jax.Array:
        return universal_logit_distance(logits, others[0], temperature=temperature)

    def heads(ours: Head, theirs: Head) -> tuple[Head, Head]:
        return ours, theirs

    return _at_pairs(student, teacher, "universal", row, heads, scale, hard, policy, teacher_policy)


def shared_token_divergence(
    student: Model,
    teacher: Model,
    loss: PairLoss,
    tokens: tuple[np.ndarray, np.ndarray],
    scale: float = 1.0,
    *,
    hard: float = 0.0,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """scale * loss(student, teacher) over the tokens both have, a mean over pairs, + hard * NLL.

    loss: of `losses.divergences`, such as `forward_kl`. tokens: (student's ids, teacher's ids)
    int [K] of the same strings (`data.alignment.shared_tokens`). Both distributions are those
    given that the next token is a shared one; how likely that is is not compared, and a token that
    only one of them has gets no gradient from it. With the same vocabulary twice and every position
    paired it is `distil.token_divergence`. Terms: "shared", and "nll" unless hard is 0.
    """
    ours, theirs = tokens
    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError(
            f"tokens: got shapes {ours.shape} and {theirs.shape}, takes [K] twice, K at least 1"
        )

    def row(logits, others, rows, fixed) -> jax.Array:
        return loss(logits, others[0])

    def heads(of_student: Head, of_teacher: Head) -> tuple[Head, Head]:
        return chosen(of_student, ours), chosen(of_teacher, theirs)

    return _at_pairs(student, teacher, "shared", row, heads, scale, hard, policy, teacher_policy)


def _at_pairs(
    student: Model,
    teacher: Model,
    name: str,
    row: Callable[..., jax.Array],
    heads: Callable[[Head, Head], tuple[Head, Head]],
    scale: float,
    hard: float,
    policy: Policy,
    teacher_policy: Policy,
) -> Objective:
    def loss(params, carry, frozen, batch: Batch, ctx: Context) -> Output:
        missing = [part for part in ("teacher", "pairs") if part not in batch]
        if missing:
            raise ValueError(
                f"batch: got {', '.join(sorted(batch))}, takes {' and '.join(missing)} besides"
            )
        ours = student.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        theirs = teacher.apply(teacher_policy(params, frozen), batch["teacher"])
        pairs = batch["pairs"]
        mine, other = heads(
            _at(ours.head, pairs["student"]),
            _at(jax.lax.stop_gradient(theirs.head), pairs["teacher"]),
        )
        terms = {
            name: weighted_sum_over_vocabulary(
                row, mine, pairs["weights"], others=(other,), scale=scale
            )
        }
        if hard:
            terms["nll"] = next_token_nll(ours, batch)._replace(scale=hard)
        return Output(terms)

    return stateless(loss)


def _at(head: Head, positions: jax.Array) -> Head:
    """The head at some positions of each row: [B, T, ...] -> [B, P, ...]."""
    picked = jnp.take_along_axis(head[0], positions[..., None], axis=1)
    return head._replace(**{head._fields[0]: picked})
