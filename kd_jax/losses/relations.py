"""Relations between a sequence's positions: what attention sees, whatever the models' widths."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.losses._logs import kl
from kd_jax.losses._pieces import join, split


def relation_kl(
    student: Float[Array, "B T H K"],
    teacher: Float[Array, "B T G J"],
    *,
    heads: int,
    segments: Int[Array, "B T"] | None = None,
    chunk: int = 256,
) -> Float[Array, "B T"]:
    """mean over relation heads of KL(R_t || R_s), one a position: f32 [B, T], nats.

    student, teacher: queries, keys or values of a layer. Their heads are put side by side and cut
    into `heads` relation heads x [B, T, R, d], so that neither widths nor numbers of heads need
    agree; row i of R = softmax(x_i . x_j / sqrt(d)) is over positions j <= i of its segment.
    Nothing is stopped. Memory: B R chunk T relations at a time, made again in the backward pass.
    ValueError where a width does not divide. Source: Wang et al. 2020 (MiniLMv2), arXiv 2012.15828,
    equations 2 to 4 (numbers UNVERIFIED), whose relations are not causal.
    """
    ours, theirs = _cut("student", student, heads), _cut("teacher", teacher, heads)
    length = ours.shape[1]
    pieces = -(-length // chunk)
    cut = functools.partial(split, pieces=pieces)
    places = jnp.broadcast_to(jnp.arange(length)[None], ours.shape[:2])
    same = jnp.zeros(ours.shape[:2], jnp.int32) if segments is None else segments

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(x) -> jax.Array:
        s, t, place, segment = x
        seen = place[:, :, None] >= places[:, None, :]
        seen &= segment[:, :, None] == same[:, None, :]
        log_s, log_t = (_log_relations(*pair, seen) for pair in ((s, ours), (t, theirs)))
        return kl(log_t, log_s).mean(1)

    return join(jax.lax.map(one, tuple(map(cut, (ours, theirs, places, same)))), length=length)


def _cut(name: str, x: jax.Array, heads: int) -> jax.Array:
    width = x.shape[2] * x.shape[3]
    if heads < 1 or width % heads:
        raise ValueError(f"heads: got {heads}, takes a number that divides the {name}'s {width}")
    return x.reshape(*x.shape[:2], heads, width // heads).astype(jnp.float32)


def _log_relations(rows: jax.Array, all_rows: jax.Array, seen: jax.Array) -> jax.Array:
    """rows [B, C, R, d], all_rows [B, T, R, d], seen [B, C, T] -> f32 [B, R, C, T]."""
    scores = jnp.einsum("bcrd,btrd->brct", rows, all_rows) / rows.shape[-1] ** 0.5
    # A padded row of a piece may see nothing: finite, and left out of the result.
    return jax.nn.log_softmax(jnp.where(seen[:, None], scores, -1e30))
