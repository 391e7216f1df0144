"""Ours against what one would write by hand: `make bench`, or python -m benchmarks [NAME ...].

A module of this folder has `rows() -> list[Row]`. Timings are of this machine, as it is busy now:
look at the ratio, and measure on a quiet machine.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One comparison; smaller is better. ours and reference are in `unit`."""

    name: str
    ours: float
    reference: float
    unit: str = "µs"

    @property
    def ratio(self) -> float:
        return self.ours / self.reference


def microseconds(
    ours: Callable[[], Any], reference: Callable[[], Any], *, calls: int, rounds: int = 7
) -> tuple[float, float]:
    """Microseconds a call of each: the least mean over `calls`, of `rounds` that take turns.

    Turns, because a machine's speed drifts; the least, because only other work adds to it. Both
    are called once first, untimed. A function that starts work on a device waits for it.
    """
    best = [float("inf"), float("inf")]
    for f in (ours, reference):
        f()
    for _ in range(rounds):
        for i, f in enumerate((ours, reference)):
            start = time.perf_counter()
            for _ in range(calls):
                f()
            best[i] = min(best[i], (time.perf_counter() - start) / calls * 1e6)
    return best[0], best[1]
