"""TAID: a target that moves from the student's own distribution to the teacher's.

Source: Shing et al. 2025, arXiv 2501.16937, equations 3 to 6 (numbers UNVERIFIED); after released
code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import log_softmax


def taid(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    share: ArrayLike,
) -> Float[Array, "*batch"]:
    """-sum_v p_v log q_v, p = softmax((1 - c) sg(s) + c t), q = softmax(s), c the teacher's share.

    student_logits s, teacher_logits t [..., V], c in [0, 1] -> f32 [...], nats: the cross-entropy,
    of which `advance` reads the fall; KL(p || q) is less by p's entropy and has the same gradient,
    q - p. The student inside p is stopped. c = 0 gives the entropy of q and no gradient.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.share("share", share)
    s = student_logits.astype(jnp.float32)
    t, c = teacher_logits.astype(jnp.float32), jnp.asarray(share, jnp.float32)
    log_p = log_softmax((1 - c) * jax.lax.stop_gradient(s) + c * t, 1.0)
    log_q = log_softmax(s, 1.0)
    p = jnp.exp(log_p)
    return -(p * jnp.where(p > 0, log_q, 0.0)).sum(-1)


class Clock(NamedTuple):
    """share: the teacher's, c. loss: the last, nan before the first. momentum: of its fall."""

    share: jax.Array
    loss: jax.Array
    momentum: jax.Array


def clock(start: float) -> Clock:
    """Before the first step: share = start, 0.2 or 0.4 in the paper."""
    _checks.share("start", start)
    return Clock(jnp.float32(start), jnp.float32(jnp.nan), jnp.float32(0.0))


def advance(
    clock: Clock,
    loss: ArrayLike,
    time: ArrayLike,
    *,
    start: float,
    end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
) -> Clock:
    """The clock after a step: it goes on with time, and faster while the loss falls.

    loss: the step's mean of `taid`, over all devices and microbatches. time: step / number of
        steps, in [0, 1], of the step that is done.

    delta = (l_before - l) / (l_before + 1e-15), m = beta m + (1 - beta) delta,
    c = min(end, max(start + (end - start) time, c + alpha sigmoid(m) (1 - c))).
    The first loss is only stored. alpha = 0 leaves the linear schedule.
    """
    first = jnp.isnan(clock.loss)
    fall = jnp.where(first, 0.0, (clock.loss - loss) / (clock.loss + 1e-15))
    momentum = beta * clock.momentum + (1 - beta) * fall
    moved = clock.share + alpha * jax.nn.sigmoid(momentum) * (1 - clock.share)
    share = jnp.minimum(end, jnp.maximum(start + (end - start) * time, moved))
    return Clock(
        jnp.where(first, clock.share, share).astype(jnp.float32),
        jnp.asarray(loss, jnp.float32),
        jnp.where(first, clock.momentum, momentum),
    )
