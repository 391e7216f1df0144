"""Contrastive representation distillation: one embedding of an image against many others'.

Tian et al. 2020 (CRD), arXiv 1910.10699; form of the released code. Embeddings have length 1. A
bank holds the latest embedding of every training example, [n, K].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kd_jax.losses import _checks, _geometry


def log_scores(
    embeddings: Float[Array, "B K"],
    bank: Float[Array, "n K"],
    index: Int[Array, "B M"],
    *,
    temperature: float = 0.07,
) -> Float[Array, "B M"]:
    """<v_b, bank[index_bm]> / temperature: f32 [B, M]. No gradient reaches the bank.

    Memory: B n similarities, from which those of `index` are taken; the bank's rows are not copied.
    """
    _checks.positive("temperature", temperature)
    if index.shape[0] != embeddings.shape[0]:
        raise ValueError(
            f"index: got {index.shape[0]} rows, takes one an example, {embeddings.shape[0]}"
        )
    fixed = jax.lax.stop_gradient(bank.astype(jnp.float32))
    near = embeddings.astype(jnp.float32) @ fixed.T
    return jnp.take_along_axis(near, index, axis=1) / temperature


def noise_contrastive(
    log_scores: Float[Array, "B M"], *, examples: int, eps: float = 1e-7
) -> Float[Array, " B"]:
    """-log(x_0 / (x_0 + c)) - sum_{j >= 1} log(k / (x_j + c)), k = (M - 1) / examples, c = k + eps.

    log_scores: log x [B, M], of scores already divided by their constant Z; column 0 is the
    example itself, the others are its M - 1 negatives -> f32 [B], nats. It falls in x_0 and climbs
    in every x_j. Source: see the module, equation 18 (number UNVERIFIED), by released code.
    """
    if log_scores.shape[1] < 2:
        raise ValueError(f"log_scores: got {log_scores.shape[1]} column, takes a negative at least")
    _checks.positive("examples", examples)
    _checks.not_negative("eps", eps)
    noise = (log_scores.shape[1] - 1) / examples
    log_c, log_noise = np.float32(np.log(noise + eps)), np.float32(np.log(noise))
    z = log_scores.astype(jnp.float32)
    positive = jax.nn.softplus(log_c - z[:, 0])
    negative = jax.nn.softplus(z[:, 1:] - log_c) + (log_c - log_noise)
    return positive + negative.sum(-1)


def updated_bank(
    bank: Float[Array, "n K"],
    index: Int[Array, " B"],
    embeddings: Float[Array, "B K"],
    present: Bool[Array, " B"] | None = None,
    *,
    momentum: float = 0.5,
) -> Float[Array, "n K"]:
    """bank[i] <- momentum bank[i] + (1 - momentum) v_i, scaled to length 1; other rows stay.

    Rows that are not present, or whose index is outside [0, n), write nothing. Which of two rows
    with one index writes last is not defined.
    """
    _checks.share("momentum", momentum)
    n = bank.shape[0]
    written = _geometry.those(present, embeddings) & (index >= 0) & (index < n)
    old = bank[jnp.where(written, index, 0)]
    new = _geometry.normalised(momentum * old + (1 - momentum) * embeddings.astype(bank.dtype))
    return bank.at[jnp.where(written, index, n)].set(new, mode="drop")


def other_classes(labels: np.ndarray, count: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(key, label) -> int [count]: examples of other classes than the label's, each as likely.

    labels: of all n training examples, whose place is their index. Drawn with replacement, which
    the released code does only where a class leaves fewer than `count`. ValueError, where all
    labels are one class. n numbers become part of the program.
    """
    labels = np.asarray(labels)
    sizes = np.bincount(labels)
    if len(labels) == sizes.max(initial=0):
        raise ValueError("labels: got one class, takes at least two")
    order = jnp.asarray(np.argsort(labels, kind="stable"), jnp.int32)
    first = jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32)
    of_class = jnp.asarray(sizes, jnp.int32)

    def draw(key: jax.Array, label: jax.Array) -> jax.Array:
        known = jnp.clip(label, 0, len(sizes) - 1)
        size, start = of_class[known], first[known]
        place = jax.random.randint(key, (count,), 0, len(labels) - size)
        return order[jnp.where(place >= start, place + size, place)]

    return draw
