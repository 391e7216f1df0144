"""A line on a terminal with what is done, the speed and the time left."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator


class Progress:
    """done: bytes so far; any thread may add. show(done) is called after each addition."""

    def __init__(self, show: Callable[[int], None] = lambda done: None):
        self.done = 0
        self._show = show
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            self._show(self.done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


@contextlib.contextmanager
def drawn(total: int, *, quiet: bool) -> Iterator[Progress]:
    """A `Progress` towards `total` bytes, read and written, as a bar.

    Nothing is drawn when `quiet`, or where standard error is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield Progress()
        return
    # Imported where it is used: it takes as long as all else that a merge imports but NumPy.
    from rich import progress
    from rich.console import Console

    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merge", total=total)
        yield Progress(lambda done: bar.update(task, completed=done))
