"""Metrics of a running loop: fetched late, checked for NaN, written with the throughput."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from kd_jax.launch.errors import NonFinite
from kd_jax.launch.progress import Progress
from kd_jax.launch.writers import Writer
from kd_jax.types import Metrics

_FIRST_BAD = "first_bad_step"


class Meter:
    """Collects what steps return without waiting for them.

    The metrics of an interval of `log_every` steps are fetched when the next interval is
    complete: by then the device has long moved on.
    """

    def __init__(
        self,
        writer: Writer | None,
        progress: Progress | None,
        *,
        start: int,
        log_every: int,
        batch_size: int,
    ):
        self._writer, self._progress = writer, progress
        self._log_every, self._batch_size = log_every, batch_size
        self._open: list[tuple[int, Metrics]] = []
        self._closed: list[tuple[int, Metrics]] = []
        self._measured = start
        self._clock: float | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """step: finished steps, counting the one that returned `metrics`."""
        if self._clock is None:
            self.restart()  # after the first step, which compiled
        self._open.append((step, metrics))
        if step % self._log_every == 0:
            self._settle(self._closed)
            self._open, self._closed = [], self._open

    def catch_up(self, *, last: bool = False) -> dict[str, float]:
        """Waits for everything added, and returns the numbers of the newest step.

        last: write them even between two intervals.
        """
        newest = (self._open or self._closed)[-1:]
        jax.block_until_ready([metrics for _, metrics in newest])
        pace = self._pace(newest)
        numbers = self._settle(self._closed, pace=pace)
        if self._open:
            numbers = self._settle(self._open, pace=pace, write=last)
        self._open, self._closed = [], []
        return numbers

    def restart(self) -> None:
        """Starts the clock anew: what happened since the last step does not count."""
        self._clock = time.perf_counter()

    def _pace(self, interval: list[tuple[int, Metrics]]) -> float:
        """Seconds a step since the last time, now that the interval's last step is finished."""
        if not interval or self._clock is None:
            return math.inf
        step, begin = interval[-1][0], self._clock
        self.restart()
        taken, self._measured = step - self._measured, step
        return max(self._clock - begin, 1e-9) / max(taken, 1)

    def _settle(
        self, interval: list[tuple[int, Metrics]], *, pace: float | None = None, write: bool = True
    ) -> dict[str, float]:
        if not interval:
            return {}
        numbers = _finite(interval)
        step = interval[-1][0]
        pace = pace or self._pace(interval)
        rate = self._batch_size / pace
        if write and self._writer is not None:
            self._writer.scalars(step, numbers | {"rows_per_second": rate})
        if self._progress is not None:
            self._progress.update(step, numbers["loss"], rate, pace)
        return numbers


def _finite(interval: list[tuple[int, Metrics]]) -> dict[str, float]:
    """The numbers of the interval's last step, once no step of it is found to be bad."""
    newest = interval[-1][1]
    guards = [name for name in newest if name.split("/")[-1] == _FIRST_BAD]
    # A guard remembers the first bad step; without one every loss has to be looked at.
    losses = [] if guards else [metrics["loss"] for _, metrics in interval[:-1]]
    fetched: Mapping[str, Any] = jax.device_get(newest)
    losses = [*jax.device_get(losses), fetched["loss"]]
    bad = [int(fetched[name]) for name in guards if fetched[name] >= 0]
    if bad:
        raise NonFinite(min(bad), "the loss or its gradient")
    for (step, _), loss in zip(interval[-len(losses) :], losses, strict=True):
        if not math.isfinite(loss):
            raise NonFinite(step - 1, "the loss")
    return {name: float(value) for name, value in fetched.items() if name not in guards}
