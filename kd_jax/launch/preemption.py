"""SIGTERM as a request: finish the step, save, leave with exit code 75."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax


class _Request:
    """Set by the signal; a watch inside a watch shares it."""

    def __init__(self) -> None:
        self.made = False
        self.watches = 0


_request = _Request()


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Yields reached(step): has this run been asked to stop, and do all processes know it?

    In one process SIGTERM sets a flag while inside (in the main thread; elsewhere signals cannot
    be had, and it stays False). In a run of several, jax's preemption service listens, and every
    process must ask with the same steps in the same order.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        _request.made = True

    previous = signal.signal(signal.SIGTERM, on_signal)
    _request.watches += 1
    try:
        yield lambda step: _request.made
    finally:
        signal.signal(signal.SIGTERM, previous)
        _request.watches -= 1
        if not _request.watches:
            _request.made = False
