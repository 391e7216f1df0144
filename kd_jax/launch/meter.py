"""Metrics of a running loop: fetched late, checked for NaN, written with the speed."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.launch.errors import NonFinite
from kd_jax.launch.goodput import Events
from kd_jax.launch.prefetch import Prefetch
from kd_jax.launch.progress import Progress
from kd_jax.launch.writers import Writer
from kd_jax.trees import flatten
from kd_jax.types import Batch, Metrics

# What a line holds besides the step's own metrics; it depends on the clock, not on the run.
MEASURED = (
    "rows_per_second",
    "tokens_per_second",
    "step_seconds",
    "input_wait",
    "mfu",
    "compile_seconds",
)
_FIRST_BAD = "first_bad_step"


class Meter:
    """Collects what steps return without waiting for them.

    The metrics of an interval of `log_every` steps are fetched when the next interval is
    complete: by then the device has long moved on. With them it writes what the clock says of the
    last finished steps, `log_every` of them or more where nothing came in between. Evaluations,
    checkpoints and the starting and ending of traces do not count.

    step_seconds: a step; rows_per_second, and tokens_per_second for batches of tokens.
    input_wait: the share of the time, 0 to 1, in which the loop waited for a batch. A wait that
        ended before the device had run out of work cost nothing and is not counted; any other is
        counted whole, so that the rest is the least that the device can have worked.
    mfu: model FLOPs utilisation, flops / (step_seconds * peak), where both are given; flops: the
        model's, of a step over the whole mesh; peak: FLOP/s of all its chips.
    compile_seconds: of the first call, in the first line.
    """

    def __init__(
        self,
        writer: Writer | None,
        progress: Progress | None,
        *,
        start: int,
        log_every: int,
        batch_size: int,
        flops: float | None = None,
        peak: float | None = None,
        events: Events | None = None,
    ):
        self._writer, self._progress, self._events = writer, progress, events
        self._log_every, self._rows, self._tokens = log_every, batch_size, 0
        # Seconds a step would take at the peak.
        self._ideal = flops / peak if flops is not None and peak is not None else None
        self._open: list[tuple[int, Metrics]] = []
        self._closed: list[tuple[int, Metrics]] = []
        self._finished = start  # a step that the device has surely finished
        self._waited = 0.0  # in all
        self._marks: list[_Mark] = []  # two at most, none from before the last restart
        self._newest: Any = None  # what the newest step returned
        self._once: dict[str, float] = {}

    def draw(self, feed: Prefetch) -> Batch:
        """The next batch; takes down how long the loop and the device waited for it."""
        begin = time.perf_counter()
        batch = next(feed)
        waited = time.perf_counter() - begin
        if self._newest is None or _is_ready(self._newest):
            self._waited += waited
        return batch

    def compiled(self, seconds: float, batch: Batch) -> None:
        """After the first call of the step on `batch`, which took `seconds`."""
        self._once = {"compile_seconds": seconds}
        self._tokens = tokens_of(batch)

    def add(self, step: int, metrics: Metrics) -> None:
        """step: finished steps, counting the one that returned `metrics`."""
        if not self._marks:
            self.restart()  # after the first step, which compiled
        self._newest = metrics
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
        speed = self._speed(newest) if newest else None
        numbers = self._settle(self._closed, speed=speed)
        if self._open:
            numbers = self._settle(self._open, speed=speed, write=last)
        self._open, self._closed = [], []
        return numbers

    def restart(self) -> None:
        """Starts the clock anew: what happened since the last step does not count."""
        self._marks = [_Mark(time.perf_counter(), self._finished, self._waited)]

    def exclude(self, seconds: float) -> None:
        """These seconds, just past, were not the steps'."""
        self._marks = [mark._replace(time=mark.time + seconds) for mark in self._marks]

    def _speed(self, interval: list[tuple[int, Metrics]]) -> "_Speed":
        """Of the last steps, now that the interval's last step is finished."""
        self._finished = interval[-1][0]
        # Where the device waits for the loop it has finished later steps, too.
        for step, metrics in self._open:
            if not _is_ready(metrics):
                break
            self._finished = max(self._finished, step)
        here = _Mark(time.perf_counter(), self._finished, self._waited)
        since = self._marks[-1]
        if here.step - since.step < self._log_every:
            since = self._marks[0]  # too few steps to tell
        if here.step > self._marks[-1].step:
            self._marks = [*self._marks[-1:], here]
        seconds = max(here.time - since.time, 1e-9)
        return _Speed(
            seconds / (here.step - since.step), min((here.waited - since.waited) / seconds, 1.0)
        )

    def _settle(
        self,
        interval: list[tuple[int, Metrics]],
        *,
        speed: "_Speed | None" = None,
        write: bool = True,
    ) -> dict[str, float]:
        if not interval:
            return {}
        numbers = _finite(interval)
        step = interval[-1][0]
        speed = speed or self._speed(interval)
        if write and self._writer is not None:
            self._writer.scalars(step, numbers | self._measures(speed) | self._once)
            self._once = {}
        if write and self._events is not None:
            self._events.add("step", step)
        if self._progress is not None:
            count, unit = (self._tokens, "tokens") if self._tokens else (self._rows, "rows")
            rate = count / speed.seconds
            self._progress.update(step, numbers["loss"], rate, speed.seconds, unit)
        return numbers

    def _measures(self, speed: "_Speed") -> dict[str, float]:
        found = {"rows_per_second": self._rows / speed.seconds}
        if self._tokens:
            found["tokens_per_second"] = self._tokens / speed.seconds
        found |= {"step_seconds": speed.seconds, "input_wait": speed.wait}
        if self._ideal is not None:
            found["mfu"] = self._ideal / speed.seconds
        return found


class _Mark(NamedTuple):
    """How far things were at a time: steps finished, seconds waited for input in all."""

    time: float
    step: int
    waited: float


class _Speed(NamedTuple):
    """Seconds a step, and the share of them spent waiting for input."""

    seconds: float
    wait: float


def tokens_of(batch: Batch) -> int:
    """Tokens in a global batch: the sizes of all `inputs` that are integers [B, T]; 0 for none."""
    return sum(
        x.size
        for path, x in flatten(batch).items()
        if path.split("/")[-1] == "inputs" and x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer)
    )


def _is_ready(metrics: Mapping[str, Any]) -> bool:
    """Has the device computed them? It is not waited for."""
    return metrics["loss"].is_ready()


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
