"""Divergences that treat a teacher's k likeliest tokens apart from the rest of the vocabulary.

Of the first three the teacher is known by those k alone, as when its log-probabilities were stored.
What it gives to the rest can be told in three ways, and each is a function: both sides are cut to
the k tokens and made distributions again; the rest is one token more; or the rest is left out. With
k = V all three are KL(p || q). `top_k_kl_with_tail` alone is never above it and never below 0; the
first is identically 0 at k = 1, and the last can be negative.

student_logits [..., V], ids int [..., K] (those of a row differ), teacher_log_probs [..., K]: log p
of these tokens in the whole vocabulary -> f32 [...], nats, unreduced.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks
from kd_jax.losses._logs import FLOOR, kl, log_softmax


class Likeliest(NamedTuple):
    """ids i32 [..., K], log_probs f32 [..., K] from the largest down, log_tail f32 [...]."""

    ids: jax.Array
    log_probs: jax.Array
    log_tail: jax.Array


def likeliest(logits: Float[Array, "*batch V"], *, k: int) -> Likeliest:
    """The k largest log-probabilities and the logarithm of what is left to all other tokens.

    log_tail is summed over the rest itself, not taken from 1, so that it has digits where the
    teacher is sure; -inf where k = V. Equal logits: the first places. No gradient is meant.
    """
    size = logits.shape[-1]
    if not 1 <= k <= size:
        raise ValueError(f"k: got {k}, takes 1 to the size of the vocabulary, {size}")
    log_p = log_softmax(logits, 1.0)
    largest, ids = jax.lax.top_k(log_p, k)
    if k == size:
        return Likeliest(ids, largest, jnp.full(log_p.shape[:-1], -jnp.inf))
    rest = jnp.put_along_axis(log_p, ids, -jnp.inf, -1, inplace=False)
    return Likeliest(ids, largest, jax.nn.logsumexp(rest, -1))


def top_k_kl_renormalised(
    student_logits: Float[Array, "*batch V"],
    ids: Int[Array, "*batch K"],
    teacher_log_probs: Float[Array, "*batch K"],
) -> Float[Array, "*batch"]:
    """KL(p' || q'), p' = p and q' = q on the k tokens, each divided by its sum over them.

    The student's other logits get no gradient. Source: the logit strategy of google/tunix (code).
    """
    z = jnp.take_along_axis(student_logits.astype(jnp.float32), ids, -1)
    return kl(log_softmax(teacher_log_probs, 1.0), jax.nn.log_softmax(z))


def top_k_kl_with_tail(
    student_logits: Float[Array, "*batch V"],
    ids: Int[Array, "*batch K"],
    teacher_log_probs: Float[Array, "*batch K"],
    teacher_log_tail: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """KL(p' || q') over k + 1 entries: the k tokens as they are, and all the others as one.

    teacher_log_tail: log of the teacher's mass outside of the k tokens, or `log_tail` of them;
    -inf where there is none. Source: TRL's distillation from a server (code), at k = 1.
    """
    z = student_logits.astype(jnp.float32)
    rest = jnp.put_along_axis(z, ids, FLOOR, -1, inplace=False)
    total = jax.nn.logsumexp(z, -1, keepdims=True)
    log_q = jnp.take_along_axis(z, ids, -1) - total
    # Of the rest itself: 1 - sum_S q has few digits where the student is sure.
    log_tail_q = jax.nn.logsumexp(rest, -1, keepdims=True) - total
    log_p = jnp.concatenate([teacher_log_probs, teacher_log_tail[..., None]], -1)
    return kl(log_p.astype(jnp.float32), jnp.concatenate([log_q, log_tail_q], -1))


def top_k_kl_partial(
    student_logits: Float[Array, "*batch V"],
    ids: Int[Array, "*batch K"],
    teacher_log_probs: Float[Array, "*batch K"],
) -> Float[Array, "*batch"]:
    """sum_S p_v (log p_v - log q_v) over the k tokens, q of the whole vocabulary; may be below 0.

    Its gradient is that of KL(p || q) as if the teacher gave nothing to the rest: sum_S p is below
    1, so the term is weaker where less is known. Source: arcee-ai/DistillKit, missing mass "zero".
    """
    log_q = jnp.take_along_axis(log_softmax(student_logits, 1.0), ids, -1)
    return kl(teacher_log_probs.astype(jnp.float32), log_q)


def log_tail(log_probs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """log(1 - sum_v p_v) of the probabilities given as logarithms: f32 [...].

    For distributions stored without it. The sum is taken as at most 1 - 1e-7, the last float32
    below 1; the mass of the rest itself, where the logits are at hand, has more digits.
    """
    held = jax.nn.logsumexp(log_probs.astype(jnp.float32), -1)
    return jnp.log(-jnp.expm1(jnp.minimum(held, -1e-7)))


def top_k_split_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    k: int,
) -> Float[Array, "*batch"]:
    """sum_S p (log p - log q) + sum_rest q (log q - log p), S the teacher's k likeliest tokens.

    -> f32 [...], nats. INFERRED: "TopKLD" of arXiv 2501.06218 is described as balancing the
    tokens from which the model samples and the others, and compared with both KL; its formula was
    not at hand, and this is not to be taken as the authors'. k = V is `forward_kl`, k = 0 is
    `reverse_kl`; between them the value can be below 0. Equal teacher logits: the first places.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    size = student_logits.shape[-1]
    if not 0 <= k <= size:
        raise ValueError(f"k: got {k}, takes 0 to the size of the vocabulary, {size}")
    log_p, log_q = log_softmax(teacher_logits, 1.0), log_softmax(student_logits, 1.0)
    ids = jax.lax.top_k(jax.lax.stop_gradient(log_p), k)[1]
    inside = jnp.put_along_axis(jnp.zeros(log_p.shape, bool), ids, True, -1, inplace=False)
    weight = jnp.exp(jnp.where(inside, log_p, log_q))
    gap = jnp.where(weight > 0, log_p - log_q, 0.0)
    return (weight * jnp.where(inside, gap, -gap)).sum(-1)
