"""Cutting a sequence into pieces and multiplying a head out piece by piece."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.axes import mesh_axes, ways
from kd_jax.types import Factored, Head, Logits

PyTree = Any

# Logits of a piece on a device, 128 MiB of them in float32. A product of few tokens waits for the
# unembedding to be read, so there are never fewer tokens than this.
_LOGITS, _TOKENS = 2**25, 256


def pieces_of(head: Head, chunk: int | None) -> int:
    """How many pieces of at most `chunk` positions T is cut into.

    None: pieces of which each device has about 2^25 logits, or of 256 tokens if that is more.
    """
    batch, length, vocabulary = extent(head)
    if chunk is None:
        tokens = max(_TOKENS, _LOGITS // (vocabulary // _ways("vocab", vocabulary)))
        here, rows = length // _ways("length", length), batch // _ways("batch", batch)
        least = min(-(-here * rows // tokens), here)
        # An even cut, where there is one nearby, needs no padding and keeps the shards of T.
        return next((n for n in range(least, min(2 * least, here) + 1) if here % n == 0), least)
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, takes at least 1")
    return -(-length // chunk)


def _ways(name: str, size: int) -> int:
    """Into how many parts the mesh in context cuts an axis; 1 where it does not divide it."""
    parts = ways(mesh_axes(name))
    return parts if size % parts == 0 else 1


def split(x: jax.Array, *, pieces: int) -> jax.Array:
    """[B, T, ...] -> [n, B, C, ...] with C = ceil(T / n); the end of T is padded with zeros.

    Piece i is positions i::n: of a T split over devices, each has its part of every piece.
    """
    batch, length, *rest = x.shape
    size = -(-length // pieces)
    x = jnp.pad(x, [(0, 0), (0, pieces * size - length)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(batch, size, pieces, *rest), 2, 0)


def join(x: jax.Array, *, length: int) -> jax.Array:
    """[n, B, C, ...] -> [B, T, ...]: `split` undone."""
    joined = jnp.moveaxis(x, 0, 2)  # [B, C, n, ...]
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :length]


def multiply(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
    """hidden [B, C, D], unembedding [V, D] -> f32 [B, C, V]."""
    return jnp.einsum("bcd,vd->bcv", hidden, unembedding, preferred_element_type=jnp.float32)


def bend(product: jax.Array, curve: PyTree) -> jax.Array:
    """What `Factored.logits` does after the product; curve: (scale, softcap or None)."""
    scale, softcap = curve
    z = scale * product
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def curve_of(head: Factored) -> PyTree:
    """As arrays: a head that has passed through a jit boundary holds arrays here anyhow."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (head.scale, head.softcap))


def extent(head: Head) -> tuple[int, ...]:
    """(B, T, V)."""
    if isinstance(head, Logits):
        return head.z.shape
    return (*head.hidden.shape[:2], head.unembedding.shape[0])


def check_head(name: str, head: Head) -> None:
    """ValueError unless the head is of whole sequences, [B, T, ...]."""
    if isinstance(head, Logits):
        if head.z.ndim != 3:
            raise ValueError(f"{name}.z: got shape {head.z.shape}, takes [B, T, V]")
    elif head.hidden.ndim != 3 or head.unembedding.shape[1:] != head.hidden.shape[-1:]:
        raise ValueError(
            f"{name}: got hidden {head.hidden.shape} and unembedding {head.unembedding.shape}, "
            "takes [B, T, D] and [V, D]"
        )


def check_targets(head: Head, targets: jax.Array) -> None:
    """ValueError unless there is one target a position."""
    shape = head[0].shape[:2]
    if targets.shape != shape:
        raise ValueError(f"targets: got shape {targets.shape}, takes [B, T] of the head, {shape}")


def beside(
    row: Callable[..., Any], others: Sequence[Head], rows: PyTree, fixed: PyTree, *, pieces: int
) -> tuple[Callable[..., Any], PyTree, PyTree]:
    """(row', rows', fixed'), stopped: row'(z, a piece of rows', fixed') has the others' logits."""
    others, rows, fixed = jax.lax.stop_gradient((tuple(others), rows, fixed))
    kinds = tuple(type(other) for other in others)
    rows = jax.tree.map(
        functools.partial(split, pieces=pieces), ([other[0] for other in others], rows)
    )
    return functools.partial(_with_others, row, kinds), rows, ([x[1:] for x in others], fixed)


def _with_others(
    row: Callable[..., Any],
    kinds: tuple[Callable[..., Head], ...],
    logits: jax.Array,
    rows: PyTree,
    fixed: PyTree,
) -> Any:
    (arrays, rows), (rest, fixed) = rows, fixed
    others = tuple(
        kind(array, *more).logits() for kind, array, more in zip(kinds, arrays, rest, strict=True)
    )
    return row(logits, others, rows, fixed)
