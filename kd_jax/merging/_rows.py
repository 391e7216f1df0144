"""What operators on rows (a leaf's last axis; a scalar is a row of one) have in common."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def row_sum(x: jax.Array) -> jax.Array:
    """The sum of each row, [..., 1]."""
    return jnp.sum(x, axis=-1, keepdims=True) if x.ndim else x


def largest_in_rows(x: jax.Array, k: int) -> jax.Array:
    """bool like x: is |x| among the k largest of its row? The earlier of equal ones first.

    Exactly k a row. Two radix selects, one over the bits of the magnitudes and one over the
    positions of those that equal the threshold: counts only, so that nothing is sorted and a row
    over several devices stays where it is. NaN counts as larger than every number.
    """
    return _largest(x, k, (x.ndim - 1,))


def largest_in_leaf(x: jax.Array, k: int) -> jax.Array:
    """As `largest_in_rows`, over all entries of x; the earlier of equal ones in row-major order."""
    if x.size >= 2**32:
        raise ValueError(f"a leaf {x.shape} of 2**32 entries or more; merge each layer by itself")
    return _largest(x, k, tuple(range(x.ndim)))


def _largest(x: jax.Array, k: int, axes: Sequence[int]) -> jax.Array:
    n = math.prod(x.shape[axis] for axis in axes)
    if k in (0, n):
        return jnp.full(x.shape, k == n)
    # The bits of a non-negative float32 order as the float does.
    bits = jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)

    def count(chosen: jax.Array) -> jax.Array:
        return jnp.sum(chosen, axis=axes, keepdims=True, dtype=jnp.uint32)

    def select(values: jax.Array, among: jax.Array, rank: jax.Array, width: int) -> jax.Array:
        """The rank-th smallest (from 0) of the values of `width` bits among some entries."""

        def fix_bit(i: jax.Array, prefix: jax.Array) -> jax.Array:
            candidate = prefix | (jnp.uint32(1) << (width - 1 - i).astype(jnp.uint32))
            return jnp.where(count(among & (values < candidate)) <= rank, candidate, prefix)

        return jax.lax.fori_loop(0, width, fix_bit, jnp.zeros_like(rank))

    everywhere = jnp.ones(x.shape, bool)
    rank = jnp.full_like(count(everywhere), n - k)
    threshold = select(bits, everywhere, rank, 31)
    above, equal = bits > threshold, bits == threshold
    position = _positions(x.shape, axes)
    missing = jnp.uint32(k) - count(above)  # at least 1
    last = select(position, equal, missing - 1, n.bit_length())
    return above | (equal & (position <= last))


def _positions(shape: tuple[int, ...], axes: Sequence[int]) -> jax.Array:
    """u32: the row-major index of each entry among those that differ along the axes only."""
    found, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(axes):
        found += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return found
