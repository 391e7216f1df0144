"""Fine-tuning moved at decoding time: what it did to small models, added to a big one's logits.

A shift is log q_t - log q: what fine-tuning changed in a small model's next-token distribution q.
Emulated fine-tuning (EFT) adds one shift to a big model that was never fine-tuned, log p + shift;
dynamic logits fusion adds several, and solves for their coefficients at every token. All models
share one vocabulary and see the same tokens.

Logits are finite, [..., V] of any float type, up to a constant for each row: logarithms of
probabilities do as well. Nothing is stopped, and nothing is trained.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import kl, log_softmax


def eft_log_probs(
    base_big: Float[Array, "*batch V"],
    base_small: Float[Array, "*batch V"],
    tuned_small: Float[Array, "*batch V"],
    *,
    beta: ArrayLike = 1.0,
) -> Float[Array, "*batch V"]:
    """log softmax(log q_t + beta (log p - log q)): f32 [..., V], natural logarithms.

    p the big base model, q the small one, q_t the small one fine-tuned. beta = 1 is EFT, where
    either model may be taken as the one that is shifted; beta > 1 amplifies what size brings, and
    beta = 0 is q_t. With p = q it is q_t at every beta; with q_t = q it is p at beta = 1.
    The product is normalised token by token, which the sequence it stands for is not. Amplified,
    it explodes where q is tiny: draw from it `within` the big model's `nucleus`. Source: Mitchell
    et al. 2023, arXiv 2310.12962, sections 3.2 and 3.3.
    """
    _checks.same_shape(base_big=base_big, base_small=base_small, tuned_small=tuned_small)
    big, small, tuned = (x.astype(jnp.float32) for x in (base_big, base_small, tuned_small))
    return jax.nn.log_softmax(tuned + beta * (big - small))


def fused_log_probs(
    base_big: Float[Array, "*batch V"],
    base_small: Float[Array, "*batch V"],
    tuned_small: Float[Array, "*batch N V"],
    alpha: ArrayLike,
) -> Float[Array, "*batch V"]:
    """log softmax(log p + sum_n alpha_n (log q_n - log q)): f32 [..., V].

    tuned_small: N fine-tuned small models of one base q. alpha: [N], or [..., N] with others for
    each row. The base at alpha = 0; `eft_log_probs` at beta = 1 for N = 1 and alpha = 1.
    alpha = (lam, 1 - lam) is EFT's mix of two rewards, lam r_1 + (1 - lam) r_2 with r = log(q_n /
    q) (arXiv 2310.12962, section 3.2); `solve_alpha` gives dynamic fusion's (arXiv 2406.15480).
    """
    _checks.same_shape(base_big=base_big, base_small=base_small)
    _check_tuned(base_small, tuned_small)
    alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), tuned_small.shape[:-1])
    return jax.nn.log_softmax(
        base_big.astype(jnp.float32) + _sum(alpha, _shifts(base_small, tuned_small))
    )


def nucleus(logits: Float[Array, "*batch V"], *, top_p: float) -> Bool[Array, "*batch V"]:
    """Which tokens: the likeliest that together reach probability top_p; bool [..., V].

    The one that crosses it is among them, and those equal to it. top_p in (0, 1]; 1 keeps all.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, takes a number in (0, 1]")
    z = logits.astype(jnp.float32)
    if top_p == 1:
        return jnp.ones(z.shape, bool)
    ordered = jnp.sort(z, axis=-1, descending=True)
    p = jax.nn.softmax(ordered)
    before = jnp.cumsum(p, axis=-1) - p
    return z >= jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)


def within(
    log_probs: Float[Array, "*batch V"], kept: Bool[Array, "*batch V"]
) -> Float[Array, "*batch V"]:
    """The distribution over the tokens kept alone: f32 [..., V], -inf for the others.

    For drawing: the cross-entropy with a text is inf as soon as one of its tokens is left out.
    """
    _checks.same_shape(log_probs=log_probs, kept=kept)
    return jax.nn.log_softmax(jnp.where(kept, log_probs.astype(jnp.float32), -jnp.inf))


def fusion_mismatch(
    base_big: Float[Array, "*batch V"],
    base_small: Float[Array, "*batch V"],
    tuned_small: Float[Array, "*batch N V"],
    alpha: ArrayLike,
) -> Float[Array, "*batch"]:
    """sum_n (KL(p~ || p) - KL(q_n || q))^2 + (KL(p || p~) - KL(q || q_n))^2: f32 [...], nats^2.

    p~ = exp(`fused_log_probs`), arguments as there: how far the big model is moved, against how
    far fine-tuning moved each small one. 0 at alpha = 1 where N = 1 and p = q. Source: Fan et al.
    2024, arXiv 2406.15480, the multi-expert objective.
    """
    _checks.same_shape(base_big=base_big, base_small=base_small)
    _check_tuned(base_small, tuned_small)
    alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), tuned_small.shape[:-1])
    shifts = _shifts(base_small, tuned_small)
    return _mismatch(log_softmax(base_big, 1.0), shifts, _moved(base_small, tuned_small), alpha)


def solve_alpha(
    base_big: Float[Array, "*batch V"],
    base_small: Float[Array, "*batch V"],
    tuned_small: Float[Array, "*batch N V"],
    candidates: ArrayLike,
) -> Float[Array, "*batch N"]:
    """The candidate of least `fusion_mismatch` for each row, the first of equals: f32 [..., N].

    candidates: [M, N], such as `alpha_lines`; the mismatch is not convex, so it is searched over
    all of them. They are tried one after the other: memory is that of one, [..., N, V], and the
    work is M softmaxes over V for each row. No gradient. Source: as `fusion_mismatch`; the paper
    searches [0, 2], its solver UNVERIFIED.
    """
    _checks.same_shape(base_big=base_big, base_small=base_small)
    _check_tuned(base_small, tuned_small)
    candidates = jnp.asarray(candidates, jnp.float32)
    rows = tuned_small.shape[:-1]
    if candidates.ndim != 2 or candidates.shape[1] != rows[-1] or not len(candidates):
        raise ValueError(
            f"candidates: got shape {candidates.shape}, takes [M, N] with the N of tuned_small, "
            f"{rows[-1]}"
        )
    log_p = log_softmax(base_big, 1.0)
    shifts, moved = _shifts(base_small, tuned_small), _moved(base_small, tuned_small)

    def compare(best: tuple[jax.Array, jax.Array], candidate: jax.Array):
        least, alpha = best
        tried = jnp.broadcast_to(candidate, rows)
        value = _mismatch(log_p, shifts, moved, tried)
        better = value < least
        return (jnp.where(better, value, least), jnp.where(better[..., None], tried, alpha)), None

    start = (jnp.full(rows[:-1], jnp.inf), jnp.zeros(rows))
    return jax.lax.stop_gradient(jax.lax.scan(compare, start, candidates)[0][1])


def alpha_lines(experts: int, *, step: float = 0.1, most: float = 2.0) -> np.ndarray:
    """Candidates in which one expert alone has a coefficient, 0 to `most`: f32 [M, experts].

    The paper's acceleration for several experts: not a grid over all of their coefficients, but a
    line for each expert. The range is the paper's, the step of 0.1 UNVERIFIED.
    """
    if experts < 1:
        raise ValueError(f"experts: got {experts}, takes at least 1")
    if not 0 < step <= most:
        raise ValueError(f"step: got {step}, takes a number above 0, up to most, {most}")
    line = np.arange(1, int(most / step + 1e-6) + 1, dtype=np.float32) * np.float32(step)
    each = [line[:, None] * one for one in np.eye(experts, dtype=np.float32)]
    return np.concatenate([np.zeros((1, experts), np.float32), *each])


def _check_tuned(base_small: jax.Array, tuned_small: jax.Array) -> None:
    shape = tuned_small.shape
    if len(shape) != base_small.ndim + 1 or shape[:-2] + shape[-1:] != base_small.shape:
        raise ValueError(
            f"tuned_small: got shape {shape}, takes [..., N, V] beside base_small's [..., V], "
            f"{base_small.shape}"
        )


def _shifts(base_small: jax.Array, tuned_small: jax.Array) -> jax.Array:
    return tuned_small.astype(jnp.float32) - base_small.astype(jnp.float32)[..., None, :]


def _sum(alpha: jax.Array, shifts: jax.Array) -> jax.Array:
    # No matrix product: a TPU would take it in bfloat16.
    return (alpha[..., None] * shifts).sum(-2)


def _moved(base_small: jax.Array, tuned_small: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(KL(q_n || q), KL(q || q_n)), [..., N] each."""
    after = log_softmax(tuned_small, 1.0)
    before = jnp.broadcast_to(log_softmax(base_small, 1.0)[..., None, :], after.shape)
    return kl(after, before), kl(before, after)


def _mismatch(
    log_p: jax.Array, shifts: jax.Array, moved: tuple[jax.Array, jax.Array], alpha: jax.Array
) -> jax.Array:
    fused = jax.nn.log_softmax(log_p + _sum(alpha, shifts))
    gaps = (kl(fused, log_p)[..., None] - moved[0], kl(log_p, fused)[..., None] - moved[1])
    return sum((jnp.square(gap).sum(-1) for gap in gaps), jnp.zeros(()))
