"""ULD's model: a language model whose next-token logits are those of two (arXiv 2406.08607).

An assistant that remembers what is to be forgotten, and is uniform elsewhere, is subtracted from a
model that knows everything. Source: Ji et al. 2024, section 3 and the released code, which has two
rules for tokens that the base model finds very unlikely; both are here, each under its name.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from kd_jax.losses import _checks


def plausible(base_logits: Float[Array, "*batch V"], *, top: float) -> Bool[Array, "*batch V"]:
    """Which tokens the assistant may move: bool [..., V], at least one of each row.

    A token is left out where log p < min(k-th largest log p, max log p + log(top)), p the base
    model's, k = max(1, int(top * V)): it is neither among the k likeliest nor as likely as `top`
    times the likeliest. Subtracting would otherwise raise tokens that both models find impossible,
    because the assistant's logits are very negative there. top in (0, 1]; 0.01 in the paper; 1
    keeps all. The released code lacks the max: its k = 0 keeps everything, which is the case of
    vocabularies below 1 / top. No gradient.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top: got {top}, takes a number in (0, 1]")
    # The normaliser of log p is the same on both sides.
    z = jax.lax.stop_gradient(base_logits).astype(jnp.float32)
    k = max(1, int(top * z.shape[-1]))
    kth = jax.lax.top_k(z, k)[0][..., -1:]
    return z >= jnp.minimum(kth, z.max(-1, keepdims=True) + math.log(top))


def uld_combine(
    base_logits: Float[Array, "*batch V"],
    assistant_logits: Float[Array, "*batch V"],
    *,
    weight: ArrayLike,
    top: float,
) -> Float[Array, "*batch V"]:
    """z = z_base + weight * z_assistant, z_base alone where a token is not `plausible`.

    base_logits, assistant_logits [..., V] over one vocabulary -> f32 [..., V]. This is the rule of
    the teacher-forced forward pass, by which answers are scored; `uld_sampling` is that of
    generation. weight is negative: -0.8 in the paper for TOFU, -0.7 for Harry Potter; 0 gives the
    base model, and so does an assistant with equal logits, up to a constant over the plausible
    tokens (over all of them with top = 1: the distribution is then the base's). Nothing is
    stopped but the choice of tokens.
    """
    _checks.same_shape(base_logits=base_logits, assistant_logits=assistant_logits)
    moved = jnp.where(plausible(base_logits, top=top), assistant_logits.astype(jnp.float32), 0.0)
    return base_logits.astype(jnp.float32) + weight * moved


def uld_sampling(
    base_logits: Float[Array, "*batch V"],
    assistant_logits: Float[Array, "*batch V"],
    *,
    weight: ArrayLike,
    top: float,
) -> Float[Array, "*batch V"]:
    """`uld_combine` with -inf where a token is not `plausible`: such tokens are never drawn.

    The released code writes -1000 for -inf; in float32 both have probability 0.
    """
    combined = uld_combine(base_logits, assistant_logits, weight=weight, top=top)
    return jnp.where(plausible(base_logits, top=top), combined, -jnp.inf)
