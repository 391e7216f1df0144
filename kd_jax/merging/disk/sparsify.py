"""Which entries of the task vectors of a tensor are kept, block after block.

A `Mask` tells it for one model. TIES keeps the largest magnitudes, breadcrumbs the largest but the
very largest, DARE any, DELLA any with probabilities by rank. The rules are mergekit's: counts are
exact for each tensor, so that of equal magnitudes at the threshold only the first are kept.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from kd_jax.merging import formulas
from kd_jax.merging.disk.blocks import Work, spans
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.random_bits import Bernoulli, stream
from kd_jax.merging.disk.selection import MAGNITUDE, Cut, Largest, Selection
from kd_jax.merging.disk.task import Task

# Of a sample: so many elements together, a place for so many elements, at most so many places.
_CHUNK, _EACH, _PLACES = 2048, 1 << 16, 64


@runtime_checkable
class Mask(Protocol):
    """Blocks come in order. delta: a block of the task vector; out: booleans, written, returned."""

    def mask(self, work: Work, delta: np.ndarray, out: np.ndarray) -> np.ndarray: ...


# One for each model, None where all entries are kept.
Masks = list[Mask | None]
Sparsify = Callable[[Task, Work], Masks]


class Sparse(NamedTuple):
    """How a method thins out task vectors; whole_rows: a block must consist of whole rows."""

    masks: Sparsify
    whole_rows: bool = False


def delta(task: Task, work: Work, n: int, base: np.ndarray, start: int, stop: int) -> np.ndarray:
    """A block of the task vector of model n, in the buffer n; base: the base's block."""
    x = work.read(n, task.parts[n].tensor, start, stop)
    return np.subtract(x, base, out=x)


def magnitudes(work: Work, block: np.ndarray) -> np.ndarray:
    """The block's magnitudes as bits, in a buffer."""
    out = work.buffer("bits", block.size, np.uint32)
    return np.bitwise_and(block.view(np.uint32), MAGNITUDE, out=out)


class LargestMask:
    def __init__(self, cut: Cut):
        self._largest = Largest(cut)

    def mask(self, work: Work, delta: np.ndarray, out: np.ndarray) -> np.ndarray:
        return self._largest.mask(magnitudes(work, delta), out)


class _BetweenMask:
    """The largest that `last` finds, without those that `skipped` finds."""

    def __init__(self, last: Cut | None, skipped: Cut | None):
        self._last = Largest(last) if last else None
        self._skipped = Largest(skipped) if skipped else None

    def mask(self, work: Work, delta: np.ndarray, out: np.ndarray) -> np.ndarray:
        bits = magnitudes(work, delta)
        if self._last is None:
            out.fill(True)
        else:
            self._last.mask(bits, out)
        if self._skipped is not None:
            dropped = self._skipped.mask(bits, work.buffer("dropped", delta.size, np.bool_))
            np.greater(out, dropped, out=out)  # out and not dropped
        return out


class _NothingMask:
    def mask(self, work: Work, delta: np.ndarray, out: np.ndarray) -> np.ndarray:
        out.fill(False)
        return out


class _RandomMask:
    def __init__(self, random: Bernoulli):
        self._random = random

    def mask(self, work: Work, delta: np.ndarray, out: np.ndarray) -> np.ndarray:
        return self._random.mask(delta.size, out)


class _RankMask:
    """DELLA: each row is put in order by magnitude, and the coin of each place is thrown."""

    def __init__(self, task: Task, n: int, density: float, epsilon: float):
        self._row = row_length(task)
        ranks = np.arange(1, self._row + 1, dtype=np.float32)
        try:
            self._keep = formulas.keep_probability(ranks, self._row, density, epsilon)
        except ValueError as error:
            raise MergeError(f"{task.name}: {error}") from None
        self._random = stream(task.seed, task.name, n, "ranks")

    def mask(self, work: Work, delta: np.ndarray, out: np.ndarray) -> np.ndarray:
        # Magnitude and place in one number: ties go by place, and no second array is permuted.
        keys = magnitudes(work, delta).astype(np.uint64).reshape(-1, self._row)
        keys <<= np.uint64(32)
        keys |= np.arange(self._row, dtype=np.uint64)
        keys.sort(axis=1)
        places = (keys & np.uint64(0xFFFF_FFFF)).astype(np.intp)
        kept = self._random.random(keys.shape, np.float32) < self._keep
        np.put_along_axis(out.reshape(keys.shape), places, kept, axis=1)
        return out


def row_length(task: Task) -> int:
    """The length of the last axis; a tensor of one axis, or none, is one row."""
    return max(task.shape[-1], 1) if len(task.shape) > 1 else max(task.size, 1)


def _value(task: Task, n: int, name: str) -> float:
    return float(task.parts[n].parameters[name])


def trimmed(task: Task, work: Work) -> Masks:
    """TIES: the int(density * size) largest of each model."""
    wanted: dict[tuple[int, str], int] = {}
    for n in range(len(task.parts)):
        density = _value(task, n, "density")
        if density < 1.0 and task.size:
            try:
                wanted[n, "last"] = formulas.kept(task.size, density)
            except ValueError as error:
                raise MergeError(f"{task.name}: {error}; give it another one by a filter") from None
    cuts = _cuts(task, work, wanted)
    return [
        LargestMask(cuts[n, "last"]) if (n, "last") in cuts else None
        for n in range(len(task.parts))
    ]


def without_outliers(task: Task, work: Work) -> Masks:
    """Breadcrumbs: the int(gamma * size) largest go, of the rest int(density * size) stay."""
    wanted: dict[tuple[int, str], int] = {}
    masks: dict[int, Mask | None] = {}
    for n in range(len(task.parts)):
        density, gamma = _value(task, n, "density"), _value(task, n, "gamma")
        skipped, last = formulas.surviving_ranks_of_leaf(task.size, density, gamma)
        if (skipped, last) == (0, task.size):
            masks[n] = None
        elif skipped == last:
            masks[n] = _NothingMask()
        else:
            if skipped:
                wanted[n, "skipped"] = skipped
            if last < task.size:
                wanted[n, "last"] = last
    cuts = _cuts(task, work, wanted)
    return [
        masks[n] if n in masks else _BetweenMask(cuts.get((n, "last")), cuts.get((n, "skipped")))
        for n in range(len(task.parts))
    ]


def dropped(task: Task, work: Work) -> Masks:
    """DARE: each entry is kept with probability density."""
    found: Masks = []
    for n in range(len(task.parts)):
        density = _value(task, n, "density")
        random = Bernoulli(density, task.seed, task.name, n)
        found.append(None if density >= 1.0 else _RandomMask(random))
    return found


def dropped_by_rank(task: Task, work: Work) -> Masks:
    """DELLA: each entry is kept with a probability that rises with its rank in its row."""
    found: Masks = []
    for n in range(len(task.parts)):
        density, epsilon = _value(task, n, "density"), _value(task, n, "epsilon")
        if density >= 1.0 or not task.size:
            found.append(None)
        elif density <= 0.0:
            found.append(_NothingMask())
        else:
            found.append(_RankMask(task, n, density, epsilon))
    return found


def _cuts(task: Task, work: Work, wanted: dict[tuple[int, str], int]) -> dict[tuple[int, str], Cut]:
    """The cut of every (model, purpose) whose rank is wanted."""
    samples = sample(task, work, sorted({n for n, _ in wanted}))
    finding = {key: Selection(task.size, k, samples.get(key[0])) for key, k in wanted.items()}
    cuts: dict[tuple[int, str], Cut] = {}
    while finding:
        feed(task, work, [(n, selection) for (n, _), selection in finding.items()])
        for key, selection in list(finding.items()):
            selection.finish()
            if selection.cut is not None:
                cuts[key] = selection.cut
                del finding[key]
    return cuts


def feed(task: Task, work: Work, selections: Sequence[tuple[int, Selection]]) -> None:
    """One pass: the magnitudes of each model's task vector to its selections."""
    assert task.base is not None
    for start, stop in spans(task.size):
        base = work.read("base", task.base, start, stop)
        done = -1
        bits = None
        for n, selection in sorted(selections, key=lambda pair: pair[0]):
            if n != done:
                bits = magnitudes(work, delta(task, work, n, base, start, stop))
                done = n
            assert bits is not None
            selection.feed(bits)


def sample(
    task: Task, work: Work, models: Sequence[int], places: int | None = None
) -> dict[int, np.ndarray]:
    """[places, elements]: magnitudes of these models' task vectors; {} of a small tensor.

    places: how many, by default as many as one tensor by itself needs.
    """
    if places is None:
        places = min(task.size // _EACH, _PLACES)
    if task.size < 16 * _CHUNK * places or places < 2:
        return {}
    assert task.base is not None
    found = {n: np.empty((places, _CHUNK), np.uint32) for n in models}
    for i in range(places):
        start = i * (task.size - _CHUNK) // (places - 1)
        base = work.read("base", task.base, start, start + _CHUNK)
        for n, out in found.items():
            x = delta(task, work, n, base, start, start + _CHUNK)
            out[i] = magnitudes(work, x)
    return found
