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
        self.questions = 0


_request = _Request()


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
    """Yields asked(): has this run been asked to stop, and do all processes know it?

    In one process SIGTERM sets a flag while inside (in the main thread; elsewhere signals cannot
    be had, and it stays False). In a run of several, jax's preemption service listens, wherever
    the signal arrives; every process must ask equally often, and all hear yes at the same question.
    """
    if jax.process_count() > 1:
        yield _ask_all
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        _request.made = True

    previous = signal.signal(signal.SIGTERM, on_signal)
    _request.watches += 1
    try:
        yield lambda: _request.made
    finally:
        signal.signal(signal.SIGTERM, previous)
        _request.watches -= 1
        if not _request.watches:
            _request.made = False


def _ask_all() -> bool:
    from jax.experimental import multihost_utils

    # The processes settle on a number that none of them has passed. Numbers of steps would start
    # again with each training, and the one settled on might never come.
    _request.questions += 1
    _request.made |= multihost_utils.reached_preemption_sync_point(_request.questions)
    return _request.made
