"""Starts n processes of a command on this machine, joined by jax.distributed, and supervises them.

    python -m kd_jax.launch.local -n 4 --devices 2 -- python -m experiments...

A rehearsal of a pod: four processes with two simulated CPU devices each. With -n 1 it joins
nothing and only supervises one process, on the machine's own devices where --devices is not given:
that is how each host of a pod runs its process.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from kd_jax.launch import runtime
from kd_jax.launch.cli import Parser
from kd_jax.launch.errors import UserError
from kd_jax.launch.workers import Worker, exit_code, say, start, summary, supervise

_EXAMPLE = "python -m kd_jax.launch.local -n 4 --devices 2 -- python -m experiments.quickstart"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 where every worker ended with 0; 2 for a bad command; else what `workers.exit_code` says: a
    worker's own failure, 75 (asked to stop, saved), 128 + the signal for a worker that was killed,
    134 for a lost peer; 130 for Ctrl-C.
    """
    try:
        options, command = _parse(sys.argv[1:] if argv is None else argv)
        return run(
            command,
            options.n,
            devices=options.devices,
            heartbeat=options.heartbeat,
            stuck=options.stuck,
            grace=options.grace,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(
    command: Sequence[str],
    processes: int,
    *,
    devices: int | None = None,
    heartbeat: int = runtime.HEARTBEAT,
    stuck: float = 1800.0,
    grace: float = 30.0,
) -> int:
    """Runs the command in so many processes, to their end; returns the exit code of `main`.

    devices: simulated CPU devices of each; None for those of the machine, with one process only.
    heartbeat: seconds of silence after which a process counts as lost.
    stuck: seconds without progress after which all are ended.
    grace: seconds between a failure and SIGTERM, beside the heartbeat, and from there to SIGKILL.

    Worker i's lines come as "[i] line", unless it is the only one. "python" is this interpreter.
    UserError for numbers out of range and a command that cannot be started.
    """
    for name, value, least in (
        ("-n", processes, 1),
        ("--devices", 1 if devices is None else devices, 1),
        ("--heartbeat", heartbeat, 1),
        ("--stuck", stuck, 1),
        ("--grace", grace, 0),
    ):
        if not value >= least:
            raise UserError(f"{name}: got {value:g}, takes at least {least}")
    if processes > 1 and devices is None:
        raise UserError(
            "--devices: not given, takes the simulated devices of a process; only with -n 1 are "
            "the machine's own used"
        )
    command = [sys.executable if command[0] == "python" else command[0], *command[1:]]
    shared = {"KD_JAX_HEARTBEAT": str(heartbeat)}
    if devices is not None:
        shared |= {"KD_JAX_DEVICES": str(devices)}
    if processes > 1:
        shared |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}"}
        shared |= {"JAX_NUM_PROCESSES": str(processes)}
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="kd_jax-") as folder, _requests() as requests:
        try:
            for i in range(processes):
                own = {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}
                prefix = f"[{i}] " if processes > 1 else ""
                workers.append(start(i, command, shared | own, Path(folder) / f"beat-{i}", prefix))
            ended = supervise(workers, requests, heartbeat=heartbeat, stuck=stuck, grace=grace)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.process.wait()
                for pump in worker.pumps:
                    # What a worker has started may outlive it and keep its output open.
                    pump.join(timeout=5)
        said = summary(ended)
        if said:
            say(said)
        if said and (signal.SIGINT in requests or len(requests) > 1):
            return 128 + requests[-1]
        return exit_code(ended)


@contextlib.contextmanager
def _requests() -> Iterator[list[int]]:
    """The signals that come in meanwhile; a terminal that goes away asks as SIGTERM does."""
    requests: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        requests.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        # nohup has it ignored, and so it stays.
        if handler != signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the command behind the first "--"."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = Parser(
        prog="python -m kd_jax.launch.local",
        usage="%(prog)s -n N [--devices M] [options] -- COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", type=int, required=True, help="how many processes")
    parser.add_argument("--devices", type=int, help="simulated CPU devices of each")
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=os.environ.get("KD_JAX_HEARTBEAT") or runtime.HEARTBEAT,
        help="seconds of silence after which a process counts as lost (KD_JAX_HEARTBEAT, or 60)",
    )
    parser.add_argument(
        "--stuck",
        type=float,
        default=1800.0,
        help="seconds without progress after which all are ended (1800)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        help="seconds from a failure to SIGTERM, beside the heartbeat, and from there to SIGKILL "
        "(30)",
    )
    options, command = parser.parse_args(argv[:split]), list(argv[split + 1 :])
    if not command:
        raise UserError(f"give the command behind --: {_EXAMPLE}")
    return options, command


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    raise SystemExit(main())
