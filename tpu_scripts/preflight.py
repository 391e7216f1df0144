"""Checks, on every worker at the same time, that a job can run here; minutes cheaper than finding
out by a job that hangs.

    tpu_scripts/run.sh -- python tpu_scripts/preflight.py --workdir FOLDER --processes 64

Prints "ok ...", "skip ..." or "FAIL ...: likely reason" a check, and ends with 0 only where every
check passes on every worker. It never hangs: a watchdog ends it, with what it was doing.
"""

import argparse
import faulthandler
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preflight_checks import ROOT, check_bucket, compare, free_gib, try_rename, try_write, versions

CHECKS = {
    "versions": "python, jax, jaxlib, libtpu, kd_jax and its revision are equal on all workers",
    "processes": "{processes} processes join, all within {timeout:g} s",
    "devices": "{devices} devices, and not by a fall-back to the CPU",
    "collective": "a psum of ones over all devices gives their number",
    "write": "every process writes, reads and deletes a file in {workdir}",
    "same folder": "all processes see the file that process 0 writes there",
    "rename": "a folder with a file in it can be renamed there",
    "bucket": "one mounted there lies in the region of the zone, and renames folders in one step",
    "disk": "{free_gib:g} GiB are free there and in the home folder",
}
# What jax sets its number of processes from, where a person or a cluster says it.
COUNTS = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# What is being done, and the likely reason where it does not end.
IMPORTING = "importing jax and kd_jax"
JOINING = "joining the other workers"
STARTING = "starting the devices"
BUCKET = "asking gcloud about the bucket"
WRITING = "writing to the folder of runs"
RENAMING = "renaming a folder there"
MEASURING = "measuring free disk space"
_DISK = "the file system does not answer: is the bucket mounted, and the network up?"
_COLLECTIVE = "a collective did not finish: another worker failed or is stuck (see its output)"
REASONS = {
    IMPORTING: "a slow disk, or one that does not answer",
    JOINING: "not all workers joined (process 0 says how many), or process 0 cannot be reached: is "
    "the command running on every worker, and is the coordinator's port open?",
    STARTING: "the chips do not answer: held by another process, or a worker of the slice is gone",
    BUCKET: "gcloud or the metadata server does not answer",
    WRITING: _DISK,
    RENAMING: _DISK,
    MEASURING: _DISK,
}


def workers_joined() -> int | None:
    """How many workers are connected to the coordinator; None where this process is not it.

    Counted from the sockets of this process (Linux), since jax does not say it.
    """
    mine, rows = set(), []
    for fd in Path("/proc/self/fd").glob("*"):
        try:
            mine.add(os.readlink(fd))
        except OSError:
            continue
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        if os.path.exists(table):
            rows += [line.split() for line in Path(table).read_text().splitlines()[1:]]
    listening = {
        r[1].rsplit(":", 1)[1] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in mine
    }
    if not listening:
        return None
    return sum(r[3] == "01" and r[1].rsplit(":", 1)[1] in listening for r in rows)


def reason(doing: str, joined: int | None, expected: int | None) -> str:
    """The likely reason why `doing` did not end."""
    if doing == JOINING and joined is not None:
        of = f" of {expected}" if expected else ""
        return f"only {joined}{of} workers joined: is the command running on every worker?"
    return REASONS.get(doing, _COLLECTIVE)


class Watchdog(threading.Thread):
    """Ends the process after `seconds`, saying what it was `doing`."""

    def __init__(self, seconds: float, expected: int | None):
        super().__init__(daemon=True)
        self.doing, self.expected, self.seconds = IMPORTING, expected, seconds
        # Where a call holds Python's lock, this thread of C still gets through.
        faulthandler.dump_traceback_later(seconds + 5, exit=True)
        self.start()

    def run(self) -> None:
        # The coordinator goes last: without it jax aborts the others before they have said why.
        time.sleep(0.95 * self.seconds)
        joined = workers_joined()
        if joined is not None:
            time.sleep(0.05 * self.seconds)
        said = reason(self.doing, joined, self.expected)
        print(f"FAIL {self.doing} took over {self.seconds:g} s: {said}", flush=True)
        os._exit(1)


class Report:
    """Prints the outcome of checks on this process and remembers whether all passed."""

    def __init__(self, me: int):
        self.me, self.passed = me, True

    def __call__(self, name: str, problem: str | None, fine: str, everyone: bool = False) -> None:
        """everyone: all processes see the same problem, and the first one says it."""
        self.passed &= problem is None
        if problem is None and self.me == 0:
            print(f"ok   {name}: {fine}", flush=True)
        elif problem is not None and (self.me == 0 or not everyone):
            where = "" if everyone else f" (process {self.me})"
            print(f"FAIL {name}{where}: {problem}", flush=True)


def check(args: argparse.Namespace, watchdog: Watchdog) -> bool:
    """All checks, in an order that lets the later ones rely on the earlier; did all pass?"""
    found = versions()
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    print(f"... {socket.gethostname()}: {said}", flush=True)  # before anything starts a backend
    os.environ["KD_JAX_JOIN"] = str(int(args.timeout) + 5)  # the watchdog first
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from kd_jax.launch import runtime

    watchdog.doing = JOINING
    runtime.init(cache="")
    watchdog.doing = STARTING
    devices, count = jax.devices(), jax.process_count()
    report = Report(jax.process_index())

    watchdog.doing = "comparing versions (the first collective)"
    row = np.zeros(1024, np.uint8)
    text = json.dumps(found).encode()
    row[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(count, -1)
    differ = compare([json.loads(bytes(r).rstrip(b"\0")) for r in rows])
    problem = f"{' | '.join(differ)}: run push.sh and setup.sh again" if differ else None
    report("versions", problem, said, everyone=True)

    problem = None
    if args.processes not in (None, count):
        problem = (
            f"{count} joined, expected {args.processes}: "
            "the slice is of another size, or jax did not see the cluster it is in"
        )
    report("processes", problem, str(count), everyone=True)
    kind, problem = devices[0].device_kind, None
    asked = os.environ.get("KD_JAX_DEVICES") or "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if devices[0].platform == "cpu" and not asked:
        problem = "jax fell back to the CPU: libtpu or the CUDA plugin is missing or does not start"
    elif args.devices not in (None, len(devices)):
        problem = f"{len(devices)} x {kind}, expected {args.devices}: another slice, or chips lost"
    report("devices", problem, f"{len(devices)} x {kind}", everyone=True)

    watchdog.doing = "a psum over all devices"
    total = psum_of_ones()
    problem = None if total == len(devices) else f"gave {total:g}: a chip computes wrongly"
    report("collective", problem, f"a psum of ones gives {total:g}")

    check_folder(args, watchdog, report)

    watchdog.doing = "waiting for the others' results"
    results = np.asarray(multihost_utils.process_allgather(np.asarray(report.passed))).reshape(-1)
    if report.me == 0:
        bad = ", ".join(str(i) for i in np.flatnonzero(~results))
        print(f"FAIL on processes {bad}" if bad else f"ok   all {count} processes", flush=True)
    return bool(results.all())


def psum_of_ones() -> float:
    """The number of devices, counted by a collective over all of them."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    count = len(jax.devices())
    mesh = jax.make_mesh((count,), ("all",), devices=jax.devices())
    over_all = NamedSharding(mesh, PartitionSpec("all"))
    ones = jax.make_array_from_callback(
        (count,), over_all, lambda index: np.ones(count, np.float32)[index]
    )
    psum = jax.shard_map(
        lambda x: jax.lax.psum(x, "all"),
        mesh=mesh,
        in_specs=PartitionSpec("all"),
        out_specs=PartitionSpec(),
    )
    return float(np.asarray(jax.jit(psum)(ones).addressable_data(0))[0])


def check_folder(args: argparse.Namespace, watchdog: Watchdog, report: Report) -> None:
    """Is the folder of runs writable, one for all, on the right disk, with room?"""
    import numpy as np
    from jax.experimental import multihost_utils

    from kd_jax.launch import runtime

    watchdog.doing = WRITING
    token = multihost_utils.broadcast_one_to_all(np.frombuffer(secrets.token_bytes(8), np.uint8))
    name = f".preflight-{bytes(np.asarray(token)).hex()}"
    problem = try_write(args.workdir, f"{name}-{report.me}")
    report("write", problem, str(args.workdir))
    if runtime.everywhere(problem is None):
        watchdog.doing = "comparing what the processes see in the folder of runs"
        problem = _see_the_same(args.workdir / name, report.me, runtime.barrier)
        report("same folder", problem, "all processes see the same files")
        watchdog.doing = RENAMING
        problem = try_rename(args.workdir, name) if report.me == 0 else None
        report("rename", problem, "a folder can be renamed")
    elif report.me == 0:
        print("skip same folder, rename: not every process can write", flush=True)

    watchdog.doing = BUCKET
    if report.me == 0:
        problem, fine = check_bucket(args.workdir, args.bucket_region, args.zone)
        if fine or problem:
            report("bucket", problem, fine)
        else:
            print(
                "skip bucket: its region is not known here; give --bucket-region and --zone",
                flush=True,
            )

    watchdog.doing = MEASURING
    room = {folder: free_gib(folder) for folder in (args.workdir, Path.home())}
    short = [f"{gib:.1f} GiB in {folder}" for folder, gib in room.items() if gib < args.free_gib]
    problem = f"{', '.join(short)}: fewer than {args.free_gib:g} free" if short else None
    report("disk", problem, f"{min(room.values()):.0f} GiB free")


def _see_the_same(file: Path, me: int, barrier: Callable[[str], None]) -> str | None:
    if me == 0:
        file.write_text(file.name)
    barrier("written")
    # A mounted bucket's cache may know for some seconds only what was there before.
    deadline = time.monotonic() + 5
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    barrier("seen")
    if me == 0:
        file.unlink()
    if seen:
        return None
    return (
        f"{file.parent} is another folder here than on process 0: mount the same bucket or shared "
        "disk on every worker (setup.sh --mount)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add: Callable[..., Any] = parser.add_argument
    add("--workdir", required=True, help="the folder of runs, which all workers share")
    add("--processes", type=int, help="how many there should be (not checked otherwise)")
    add("--devices", type=int, help="how many there should be in all (not checked otherwise)")
    add("--bucket-region", help="where the workdir's bucket lies; else gcloud is asked")
    add("--zone", help="where the workers are; else the metadata server is asked")
    add("--free-gib", type=float, default=20, help="disk space to ask for (%(default)s)")
    add("--timeout", type=float, default=60, help="seconds for everything (%(default)s)")
    add("--dry-run", action="store_true", help="only say what would be checked")
    args = parser.parse_args(argv)
    if "://" in args.workdir:
        parser.error("--workdir: takes a folder; mount the bucket (setup.sh --mount)")
    args.workdir = Path(args.workdir).expanduser().absolute()
    if args.dry_run:
        shown = {k: "any number of" if v is None else v for k, v in vars(args).items()}
        for name, text in CHECKS.items():
            print(f"would check {name}: {text.format(**shown)}")
        return 0
    given = next((os.environ[name] for name in COUNTS if os.environ.get(name)), None)
    watchdog = Watchdog(
        args.timeout, args.processes or (int(given) if given and given.isdecimal() else None)
    )
    sys.path.insert(0, str(ROOT))  # where kd_jax is not installed
    try:
        return 0 if check(args, watchdog) else 1
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"FAIL {watchdog.doing}: {lines[0]}", flush=True)
        os._exit(1)  # an orderly end would wait for the others, and they for this one


if __name__ == "__main__":
    sys.exit(main())
