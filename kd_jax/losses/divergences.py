"""Divergences between a student's and a teacher's distribution over the last axis.

No temperature correction is made here. With temperature tau the gradient with respect to the
student's logits is (q - p) / tau, so the soft term fades as 1 / tau**2 against a label loss;
Hinton et al. (arXiv 1503.02531, section 2) multiply the term by tau**2. That factor is a
coefficient of the method: write it as the scale of the objective's term, where the paper has it
(LM distillation papers mostly take tau = 1 and no factor).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks
from kd_jax.losses._logs import kl, log_mixture, log_softmax


def forward_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), p = softmax(t / tau), q = softmax(s / tau).

    student_logits s, teacher_logits t [..., V] of any float type -> f32 [...], nats, unreduced;
    not multiplied by tau**2 (see the module). The full divergence, not only its cross-entropy
    part. Where p_v is 0 the term is 0, with zero gradient: teacher logits of -inf are fine. It is
    inf where only the student's logit is -inf. Nothing is stopped: the objective stops the
    teacher. Source: Hinton et al. 2015, arXiv 1503.02531, equations 1 and 2.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    return kl(log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature))


def reverse_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(q || p) = sum_v q_v (log q_v - log p_v), p = softmax(t / tau), q = softmax(s / tau).

    Shapes, units and temperature as `forward_kl`. The gradient flows through both q; at tau = 1 it
    is q_v ((log q_v - log p_v) - KL(q || p)). It is inf, with no useful gradient, where the
    teacher's logit is -inf and the student's is not. Source: Gu et al. 2023 (MiniLLM), arXiv
    2306.08543, equation 1, for one token.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    return kl(log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature))


def jensen_shannon(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    beta: float,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: the generalised JSD.

    Shapes, units and temperature as `forward_kl`. beta in (0, 1) is the teacher's weight, as in
    GKD (DistiLLM's `lam` is the student's). JSD / beta goes to KL(p || q) as beta goes to 0, and
    JSD / (1 - beta) to KL(q || p) as it goes to 1: GKD's code has these two at its ends, here they
    are `forward_kl` and `reverse_kl`. At most log 2 at beta = 0.5; finite for logits of -inf.
    Source: Agarwal et al. 2023 (GKD), arXiv 2306.13649, equation 1.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    if not 0 < beta < 1:
        raise ValueError(
            f"beta: got {beta}, takes (0, 1); forward_kl and reverse_kl are what its ends stand for"
        )
    log_p, log_q = (
        log_softmax(teacher_logits, temperature),
        log_softmax(student_logits, temperature),
    )
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def skew_forward_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    alpha: float,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(p || alpha p + (1 - alpha) q): at most log(1 / alpha), with a bounded gradient.

    Shapes, units and temperature as `forward_kl`, which alpha = 0 is; alpha = 1 is 0. The released
    code returns the cross-entropy -sum_v p_v log m_v, larger by the teacher's entropy. Source: Ko
    et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1 (alpha 0.1).
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    _checks.share("alpha", alpha)
    log_p, log_q = (
        log_softmax(teacher_logits, temperature),
        log_softmax(student_logits, temperature),
    )
    return kl(log_p, log_mixture(log_p, log_q, alpha))


def skew_reverse_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    alpha: float,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(q || (1 - alpha) p + alpha q): `skew_forward_kl` with student and teacher exchanged.

    Both q carry gradient. Source: as `skew_forward_kl`.
    """
    return skew_forward_kl(teacher_logits, student_logits, alpha=alpha, temperature=temperature)


def total_variation(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """1/2 sum_v |p_v - q_v|, p = softmax(t / tau), q = softmax(s / tau): in [0, 1], no unit.

    Shapes as `forward_kl`. Its gradient has a jump where p_v = q_v (0 is taken there). Source: Wen
    et al. 2023 (f-distill), arXiv 2307.15190, section 3 (UNVERIFIED); a baseline of TAID's.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    p, q = (jnp.exp(log_softmax(z, temperature)) for z in (teacher_logits, student_logits))
    return 0.5 * jnp.abs(p - q).sum(-1)


def adaptive_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    head: float = 0.5,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """g_h / (g_h + g_t) KL(p || q) + g_t / (g_h + g_t) KL(q || p), g the gaps |p - q| of each part.

    Shapes, units and temperature as `forward_kl`. The teacher's head are the tokens above which,
    in order of its probabilities, lies at most a mass of 1 - head: g_h sums |p_v - q_v| over them
    and g_t over the others. The gaps carry gradient, as in the released code; 0 where p = q.

    That code takes the head in sorted order but the gaps in the vocabulary's, so the two do not
    belong together; here both are of the same tokens. Equal teacher logits are ordered by their
    place. Source: Wu et al. 2024, arXiv 2404.02657 (mu = 0.5); after released code.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    _checks.share("head", head)
    log_p, log_q = (
        log_softmax(teacher_logits, temperature),
        log_softmax(student_logits, temperature),
    )
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    order = jnp.argsort(jax.lax.stop_gradient(log_p), axis=-1)  # ascending
    below = jnp.cumsum(jnp.take_along_axis(jax.lax.stop_gradient(p), order, -1), -1)
    in_head = jnp.take_along_axis(below >= head, jnp.argsort(order, axis=-1), -1)
    gap = jnp.abs(p - q)
    of_head, of_tail = (jnp.where(part, gap, 0.0).sum(-1) for part in (in_head, ~in_head))
    total = of_head + of_tail
    # 0 / 0 where the two are the same, and so are both divergences.
    share = jnp.where(total > 0, of_head / jnp.where(total > 0, total, 1.0), 0.5)
    return share * kl(log_p, log_q) + (1 - share) * kl(log_q, log_p)


def decoupled_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    labels: Int[Array, "*batch"],
    *,
    target: ArrayLike = 1.0,
    others: ArrayLike,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """target KL(b_p || b_q) + others KL(p' || q'), b = (p_y, 1 - p_y), p' the classes but y.

    Shapes, units and temperature as `forward_kl`, labels y int [...]: not multiplied by tau**2.
    p' = p / (1 - p_y) without y. With target 1 and others 1 - p_y it is KL(p || q). A label outside
    [0, V), such as -100, is read as 0: finite, and for zero weights only. Source: Zhao et al. 2022
    (DKD), arXiv 2203.08679, equation 7 (others 8 or 2 for images; 0.5 for language models in
    TAID's comparison).
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    _checks.labels_of(student_logits, labels)
    classes = student_logits.shape[-1]
    known = jnp.where((labels >= 0) & (labels < classes), labels, 0)
    is_target = jax.nn.one_hot(known, classes, dtype=bool)

    def parts(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log of (y, not y) [..., 2], and the logits of the others alone."""
        z = logits.astype(jnp.float32) / temperature
        rest = jnp.where(is_target, -jnp.inf, z)
        two = [jnp.where(is_target, z, -jnp.inf), rest]
        pair = jnp.stack([jax.nn.logsumexp(x, -1) for x in two], -1)
        return jax.nn.log_softmax(pair, -1), jax.nn.log_softmax(rest, -1)

    (pair_q, rest_q), (pair_p, rest_p) = parts(student_logits), parts(teacher_logits)
    of_target, of_others = kl(pair_p, pair_q), kl(rest_p, rest_q)
    return jnp.asarray(target) * of_target + jnp.asarray(others) * of_others
