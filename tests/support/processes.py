"""Real processes for tests. What they say goes to files: who waits for a reader of a full pipe
holds up the others of its run.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import jax

TESTS = Path(__file__).parents[1]
LAUNCHER = (sys.executable, "-m", "kd_jax.launch.local")


class Started(NamedTuple):
    """A process and the file that it writes to."""

    process: subprocess.Popen
    file: IO[str]

    def said(self) -> str:
        """All of it so far. The process writes where this file stands, so that stays."""
        number = self.file.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """That of this process without its settings of jax, and with these."""
    ours = ("JAX_", "XLA_", "KD_JAX_")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return keep | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"} | more


def start(command: Sequence[str], **variables: str) -> Started:
    """The command in the environment above."""
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `finish`
    process = subprocess.Popen(
        list(command), env=environment(**variables), stdout=file, stderr=subprocess.STDOUT
    )
    return Started(process, file)


def start_joined(count: int, command: Sequence[str], **variables: str) -> list[Started]:
    """So many processes of the command, joined by jax.distributed."""
    shared = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        **variables,
    }
    return [start(command, JAX_PROCESS_ID=str(i), **shared) for i in range(count)]


def tiny_run(folder: Path, options: str) -> list[str]:
    """The command of a tiny run, with the folder of compiled programs of this test session."""
    script = str(TESTS / "support" / "tiny_run.py")
    cache = jax.config.jax_compilation_cache_dir or ""
    return [sys.executable, script, str(folder), *options.split(), "--cache", cache]


def wait_for(condition: Callable[[], object], *started: Started, timeout: float = 240) -> None:
    """Until it holds. Where a process ends before, or the time, all are ended: AssertionError."""
    deadline = time.monotonic() + timeout
    while not condition():
        ended = any(each.process.poll() is not None for each in started)
        if ended or time.monotonic() > deadline:
            codes, said = finish(*started)
            raise AssertionError(f"waited in vain; exit codes {codes}\n{said[-6000:]}")
        time.sleep(0.01)


def finish(*started: Started, timeout: float = 240) -> tuple[list[int], str]:
    """Their exit codes and all that they said. None of them is left, however this ends."""
    try:
        codes = [each.process.wait(timeout) for each in started]
    finally:
        said = []
        for each in started:
            _end(each.process)
            said.append(each.said())
            each.file.close()
        sys.stdout.write("\n\n".join(said))  # pytest shows it where a test fails
    return codes, "\n\n".join(said)


def _end(process: subprocess.Popen) -> None:
    """A launcher ends its workers when it is asked twice."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
