"""A trace of a few steps of a training, for xprof and Perfetto."""

import re
import time
from pathlib import Path
from typing import Any

import jax

from kd_jax.launch import runtime
from kd_jax.launch.errors import UserError


def parse(text: str) -> tuple[int, int]:
    """The first and the last step of --profile 10:15. UserError for anything else."""
    found = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    first, last = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"--profile {text}: takes FIRST:LAST, steps counted from 1, for instance 10:15"
        )
    return first, last


class Profile:
    """Traces the steps first..last (counted from 1, both included) of a training, on process 0.

    The trace lies in folder/step_FIRST. Of a training resumed in between, what is left of the
    steps is traced; the first step of a start compiles, so take later ones.
    `fit` calls `before` and `after` around each step, and `stop` however it ends.
    """

    def __init__(self, folder: str | Path, first: int, last: int):
        self._folder, self._first, self._last = Path(folder), first, last
        self._tracing = False
        self._mark: Any = None

    def before(self, step: int) -> float:
        """Starts the trace where it is due. Seconds that this took."""
        begin = time.perf_counter()
        if not self._tracing and self._first <= step <= self._last and runtime.is_main():
            jax.profiler.start_trace(self._folder / f"step_{step}")
            self._tracing = True
        if self._tracing:
            self._mark = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._mark.__enter__()
        return time.perf_counter() - begin

    def after(self, step: int, metrics: Any) -> float:
        """Ends the trace after the last step, once the device has finished it.

        Seconds that ending it took, without the wait for the device.
        """
        if not self._tracing:
            return 0.0
        self._leave_step()
        if step < self._last:
            return 0.0
        jax.block_until_ready(metrics)
        begin = time.perf_counter()
        self.stop()
        return time.perf_counter() - begin

    def stop(self) -> None:
        """Ends a trace that is under way."""
        if self._tracing:
            self._tracing = False
            self._leave_step()
            jax.profiler.stop_trace()

    def _leave_step(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
