"""Merges of task vectors: base + lambda * a weighted sum, of what is kept and, with a vote, agrees.

One function for eight of mergekit's methods (its generalized_task_arithmetic.py): four ways to thin
out, with or without the vote of TIES. In float32 throughout.
"""

import math

import numpy as np

from kd_jax.merging import formulas
from kd_jax.merging.disk.blocks import Work, spans
from kd_jax.merging.disk.sparsify import Masks, Sparse, delta, row_length
from kd_jax.merging.disk.task import Task

_SIGN = np.uint32(0x8000_0000)
Array = np.ndarray


def merge_task_vectors(
    task: Task, work: Work, *, sparse: Sparse | None = None, vote: bool = False
) -> None:
    """base + lambda / divisor * sum_n weight_n scale_n mask_n (theta_n - base).

    scale_n: with `rescale` what gives the kept entries the L1 norm of the whole, else 1. With
    `vote` only the entries enter that have the sign of the weighted sum, 0 counted as positive.
    divisor: with `normalize` the sum of the weights, of the entries that agree with `vote`.
    """
    assert task.base is not None
    # Whole rows, and whole bytes of a mask kept as bits.
    rows = math.lcm(row_length(task), 8) if sparse and sparse.whole_rows else 1
    masks: Masks = sparse.masks(task, work) if sparse else [None] * len(task.parts)
    scales = np.ones(len(task.parts), np.float32)
    if task.parameters["rescale"]:
        masks, scales = _rescaled(task, work, masks, rows)
    weights = [np.float32(part.parameters["weight"]) for part in task.parts]
    if vote and task.parameters["normalize"] and weights[0] > 0 and len(set(weights)) == 1:
        weights = [np.float32(1.0)] * len(weights)  # equal ones cancel
    factor = np.float32(task.parameters["lambda"])
    divisor = np.float32(sum(weights))
    if task.parameters["normalize"] and not vote and abs(divisor) >= 1e-8:
        factor /= divisor
    for start, stop in spans(task.size, rows):
        base = work.read("base", task.base, start, stop)
        values = []
        for n, mask in enumerate(masks):
            x = delta(task, work, n, base, start, stop)
            if mask is not None:
                kept = work.buffer("kept", x.size, np.bool_)
                np.multiply(x, mask.mask(work, x, kept), out=x)
            weight = weights[n] * scales[n]
            values.append(x if weight == 1.0 else np.multiply(x, weight, out=x))
        total = work.buffer("total", stop - start)
        if vote:
            agreeing_sum(work, values, weights, bool(task.parameters["normalize"]), total)
        else:
            _sum(values, total)
        if factor != 1.0:
            np.multiply(total, factor, out=total)
        work.write(start, np.add(base, total, out=total))


def _sum(values: list[Array], out: Array) -> Array:
    if len(values) < 2:
        np.copyto(out, values[0] if values else 0.0)
        return out
    np.add(values[0], values[1], out=out)
    for x in values[2:]:
        np.add(out, x, out=out)
    return out


def agreeing_sum(
    work: Work, values: list[Array], weights: list[np.float32], normalize: bool, out: Array
) -> Array:
    """`formulas.disjoint_mean` (`disjoint_sum` unless `normalize`) of weighted values, in buffers.

    The values are overwritten: with the elected sign taken out of all of them, those that agree are
    the positive ones, (x + |x|) / 2.
    """
    signs = work.buffer("signs", out.size, np.uint32)
    np.bitwise_and(_sum(values, out).view(np.uint32), _SIGN, out=signs)
    size = work.buffer("size", out.size)
    agree = [work.buffer(("agrees", n), out.size, np.bool_) for n in range(len(values))]
    for x, positive in zip(values, agree, strict=True):
        bits = x.view(np.uint32)
        np.bitwise_xor(bits, signs, out=bits)
        if normalize:
            np.greater(x, 0.0, out=positive)
        np.add(x, np.abs(x, out=size), out=x)
    _sum(values, out)
    if normalize:
        np.divide(out, _agreeing_weight(agree, weights, size, work), out=out)
    np.multiply(out, np.float32(0.5), out=out)
    bits = out.view(np.uint32)
    np.bitwise_xor(bits, signs, out=bits)
    return out


def _agreeing_weight(
    agree: list[Array], weights: list[np.float32], out: Array, work: Work
) -> Array:
    """The sum of the weights of those that agree, 1 where none does."""
    if set(weights) == {1.0} and len(weights) < 256:  # in bytes, which are a quarter to move
        count = work.buffer("count", out.size, np.uint8)
        count.fill(0)
        for one in agree:
            np.add(count, one.view(np.uint8), out=count)
        np.copyto(out, np.maximum(count, np.uint8(1), out=count))
        return out
    one = work.buffer("one", out.size)
    out.fill(0.0)
    for agrees, weight in zip(agree, weights, strict=True):
        np.add(out, np.multiply(agrees, weight, out=one), out=out)
    return np.add(out, np.equal(out, 0.0), out=out)


class _Packed:
    """A mask that was made before, a bit an entry."""

    def __init__(self, size: int):
        self._bits = np.empty(-(-size // 8), np.uint8)
        self._at = 0

    def keep(self, start: int, mask: Array) -> None:
        """start: a multiple of 8."""
        self._bits[start // 8 : -(-(start + mask.size) // 8)] = np.packbits(mask)

    def mask(self, work: Work, delta: Array, out: Array) -> Array:
        at, self._at = self._at, self._at + delta.size
        bits = self._bits[at // 8 : -(-self._at // 8)]
        np.copyto(out, np.unpackbits(bits, count=delta.size).view(np.bool_))
        return out


def _rescaled(task: Task, work: Work, masks: Masks, rows: int) -> tuple[Masks, Array]:
    """The masks, each made once and kept as bits, and the factor that keeps each L1 norm."""
    assert task.base is not None
    before, after = np.zeros((2, len(masks)))
    packed: list[_Packed | None] = [_Packed(task.size) if mask else None for mask in masks]
    if not any(packed):
        return masks, np.ones(len(masks), np.float32)
    for start, stop in spans(task.size, rows):
        base = work.read("base", task.base, start, stop)
        for n, (mask, bits) in enumerate(zip(masks, packed, strict=True)):
            if mask is None or bits is None:
                continue
            x = delta(task, work, n, base, start, stop)
            kept = mask.mask(work, x, work.buffer("kept", x.size, np.bool_))
            bits.keep(start, kept)
            # Products with ones and zeros: several times as fast as sums.
            np.abs(x, out=x)
            ones = work.buffer("ones", x.size)
            ones.fill(1.0)
            before[n] += np.dot(x, ones)
            np.copyto(ones, kept)
            after[n] += np.dot(x, ones)
    scales = np.ones(len(masks), np.float32)
    for n, bits in enumerate(packed):
        if bits is not None:
            scales[n] = formulas.realised_scale(np.asarray(before[n]), np.asarray(after[n]))
    found: Masks = list(packed)
    return found, scales
