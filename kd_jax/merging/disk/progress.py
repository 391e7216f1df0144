"""A line on a terminal with what is done, the speed and the time left."""

import sys
import threading
import time
from types import TracebackType

_WIDTH = 30


class Progress:
    """with Progress(total, quiet=False) as progress: progress.add(bytes)

    total: bytes that will be read and written. Nothing is drawn when `quiet`, or where standard
    error is no terminal. Any thread may add.
    """

    def __init__(self, total: int, *, quiet: bool):
        self.done = 0
        self._total = max(total, 1)
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._drawn = 0.0
        self._quiet = quiet or not sys.stderr.isatty()

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            if not self._quiet and time.monotonic() - self._drawn > 0.1:
                self._drawn = time.monotonic()
                self._draw()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def _draw(self) -> None:
        share = min(self.done / self._total, 1.0)
        speed = self.done / max(self.seconds, 1e-9)
        left = round((self._total - self.done) / max(speed, 1.0))
        bar = "#" * round(share * _WIDTH)
        line = f"{share:4.0%} |{bar:<{_WIDTH}}| {self.done / 1e9:.2f}/{self._total / 1e9:.2f} GB, "
        sys.stderr.write(f"\r{line}{speed / 1e9:.2f} GB/s, {left // 60}:{left % 60:02} left ")
        sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._quiet:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
