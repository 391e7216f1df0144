"""A progress bar with the loss, the throughput and the time left; nothing without a terminal."""

import math
from types import TracebackType

import rich.console
import rich.progress


class Progress:
    """with Progress("finetune", steps) as progress: fit(..., progress=progress)

    quiet: draws nothing; when None, wherever standard error is no terminal.
    """

    def __init__(self, description: str, steps: int, *, quiet: bool | None = None):
        console = rich.console.Console(stderr=True)
        self._steps = steps
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal if quiet is None else quiet,
        )
        self._task = self._bar.add_task(description, total=steps, numbers="", left="")

    def update(
        self, step: int, loss: float, rate: float, step_seconds: float, unit: str = "rows"
    ) -> None:
        """step: finished steps. The rest is of the last interval; the ETA is reckoned from it.

        rate: of `unit`, "tokens" or "rows", a second.
        """
        numbers = f"loss {loss:.4g}, {rate:.3g} {unit}/s"
        left = time_left((self._steps - step) * step_seconds)
        self._bar.update(self._task, completed=step, numbers=numbers, left=left)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def time_left(seconds: float) -> str:
    """'ETA 1:02:03'; nothing while it is not known."""
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"ETA {hours}:{minutes:02}:{rest:02}"
