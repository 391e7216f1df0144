"""Processes that belong together: started, watched, and all ended where one of them is lost."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from kd_jax.launch.errors import Preempted, UserError

LOST = 128 + signal.SIGABRT  # what jax's runtime ends a process with when a peer is silent

_PAUSE = 0.1  # seconds between two looks at the workers


class Worker:
    """A started process. code: how it ended, as a shell says it (128 + a signal's number).

    beat: the file that it touches as it makes progress. forced: it did not end by itself.
    """

    def __init__(self, index: int, process: subprocess.Popen[bytes], beat: Path):
        self.index, self.process, self.beat = index, process, beat
        self.code: int | None = None
        self.forced = False
        self.pumps: list[threading.Thread] = []
        self.last = 0  # beat, in nanoseconds of the file system
        self._since = 0.0

    def ended(self) -> bool:
        code = self.process.poll()
        if code is not None:
            self.code = 128 - code if code < 0 else code
        return code is not None

    def send(self, number: int) -> None:
        """To the process alone: what it has started itself (loaders of data) it still needs."""
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.forced = True
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """With all that it has started; nothing where it has ended."""
        if not self.ended():
            self.forced = True
            os.killpg(self.process.pid, signal.SIGKILL)

    def idle(self) -> float:
        """Seconds since the last beat; 0 before the first."""
        try:
            last = self.beat.stat().st_mtime_ns
        except FileNotFoundError:
            return 0.0
        # Both times from a clock that nobody sets.
        now = time.monotonic()
        if last != self.last:
            self.last, self._since = last, now
        return now - self._since


def start(
    index: int, command: Sequence[str], variables: Mapping[str, str], beat: Path, prefix: str = ""
) -> Worker:
    """A worker with `variables` added to this process's environment.

    With a prefix, its output passes through here, line by line. UserError where it cannot start.
    """
    # A line that waits in a buffer is lost when the process is aborted.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables, "KD_JAX_BEAT": str(beat)}
    pipe = subprocess.PIPE if prefix else None
    try:
        process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            # A session of its own, so that Ctrl-C reaches it from here and only once.
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"cannot start {command[0]}: {error.strerror}") from None
    worker = Worker(index, process, beat)
    for stream, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        if stream is not None:
            arguments = (stream, sink.buffer, prefix.encode())
            worker.pumps.append(threading.Thread(target=_pump, args=arguments, daemon=True))
            worker.pumps[-1].start()
    return worker


def _pump(stream: IO[bytes], sink: IO[bytes], prefix: bytes) -> None:
    with stream:
        for line in stream:
            # Where nobody reads any more, the worker must not wait for it.
            with contextlib.suppress(OSError):
                sink.write(prefix + line.removesuffix(b"\n") + b"\n")
                sink.flush()


def say(text: str) -> None:
    """A line of the launcher's own. A terminal that is gone must not end the workers."""
    with contextlib.suppress(OSError):
        print(f"launcher: {text}", file=sys.stderr, flush=True)


def supervise(
    workers: Sequence[Worker],
    requests: list[int],
    *,
    heartbeat: float,
    stuck: float,
    grace: float,
) -> list[Worker]:
    """Waits for all; returns them in the order in which they ended.

    requests: signals that came in, filled by a handler. The first is passed on to every worker,
        another one kills them.
    When one ends with a failure, the others have heartbeat + grace seconds: jax's runtime needs the
    heartbeat to miss a peer. Then comes SIGTERM, and after another `grace` SIGKILL, the only thing
    that ends a stopped process. The same goes for all when one has not beaten for `stuck` seconds,
    counted from its first beat.
    """
    living, ended = list(workers), []
    handled, terminated, deadline = 0, False, math.inf
    while living:
        now = time.monotonic()
        done = [worker for worker in living if worker.ended()]
        living = [worker for worker in living if worker not in done]
        ended += done
        for number in requests[handled:]:
            for worker in living:
                worker.kill() if handled else worker.send(number)
            handled += 1
        if deadline == math.inf:
            idle = [worker for worker in living if worker.idle() > stuck]
            if any(worker.code for worker in done):
                deadline = now + heartbeat + grace
            elif idle:
                first = min(idle, key=lambda worker: worker.last)
                say(f"worker {first.index} has made no progress for {stuck:g} s; ending all")
                deadline = now
        if now >= deadline:
            for worker in living:
                worker.kill() if terminated else worker.terminate()
            if not terminated:
                terminated, deadline = True, now + grace
        if living:
            time.sleep(_PAUSE)
    return ended


def exit_code(ended: Sequence[Worker]) -> int:
    """One code for all, of workers in the order in which they ended.

    0 where all ended with 0. A worker that was killed (SIGKILL of a machine out of memory, a crash)
    before any other failed is the cause of the rest: 128 + the signal's number. Else a program's
    own failure (1, 2, ...) comes before 75, that before a kill, and 134, a lost peer, says least.
    A worker that a signal from here had to end counts as lost.
    """
    cause = _cause(ended)
    if cause is None:
        return 0
    return LOST if _rank(cause) == 3 else cause.code or 0


def _cause(ended: Sequence[Worker]) -> Worker | None:
    failed = [worker for worker in ended if worker.code]
    if failed and _rank(failed[0]) == 2:
        return failed[0]
    return min(failed, key=_rank, default=None)


def _rank(worker: Worker) -> int:
    if _signal(worker.code or 0):
        return 3 if worker.forced or worker.code == LOST else 2
    return 1 if worker.code == Preempted.exit_code else 0


def _signal(code: int) -> str:
    """The name of the signal that an exit code stands for, "" for none."""
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return ""


def summary(ended: Sequence[Worker]) -> str:
    """One line: how the workers ended that did not end with 0, "" where all did."""
    groups: dict[str, list[int]] = {}
    for worker in ended:
        if worker.code:
            groups.setdefault(_how(worker), []).append(worker.index)
    parts = [
        f"worker{'s' * (len(indices) > 1)} {', '.join(map(str, sorted(indices)))} {how}"
        for how, indices in groups.items()
    ]
    cause = _cause(ended)
    if cause is not None and _rank(cause):
        parts.append("start the same command again to resume from the last checkpoint")
    return "; ".join(parts)


def _how(worker: Worker) -> str:
    code = worker.code or 0
    if worker.forced and _signal(code):
        return f"had to be ended ({_signal(code)})"
    if code == LOST:
        return "stopped because a peer was lost, or crashed (SIGABRT, 134)"
    if code == Preempted.exit_code:
        return "stopped as asked (75)"
    return f"was killed ({_signal(code)})" if _signal(code) else f"failed with exit code {code}"
