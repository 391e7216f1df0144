"""Starts a tiny run again and again and ends it in the middle, until it is let finish.

python kill_sweep.py FOLDER SEED: FOLDER/whole is a run left alone, FOLDER/cut one ended in the ways
of `ENDS`, one after the other. Prints {"exits": [...], "whole": code}. Children are forked before
jax starts a backend, so that each start takes no new import.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

from support import tiny_run

# (signal, what it waits for): a start of the process, a line of metrics, a checkpoint begun.
ENDS = (
    (signal.SIGKILL, "line"),
    (signal.SIGKILL, "save"),
    (signal.SIGTERM, "line"),
    (signal.SIGKILL, "start"),
    (signal.SIGKILL, "save"),
)


def begin(folder: Path, cache: Path) -> int:
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        options = "--devices 2 --fsdp 2 --steps 80 --every 4 --delay 0.005"
        code = tiny_run.main([str(folder), *options.split(), "--cache", str(cache)])
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def seen(folder: Path, what: str) -> object:
    """Something that changes when the event happens."""
    if what == "line":
        file = folder / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0
    return sorted(p.name for p in (folder / "checkpoints").glob("*") if p.name[0] != ".")


def end(pid: int, folder: Path, number: int, what: str, rng: random.Random) -> int:
    """Sends the signal after the event and a random while; the exit code, negative for signals."""
    before = [seen(folder, what)]
    for _ in range(1 if what == "start" else rng.randint(1, 3)):
        while what != "start" and seen(folder, what) in before:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.001)
        before.append(seen(folder, what))
    time.sleep(rng.uniform(0, 1.0 if what == "start" else 0.04))
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    root, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    # No backend has started, so there are no threads that a fork would lose.
    warnings.filterwarnings("ignore", message="os.fork")
    whole = begin(root / "whole", root / "cache")
    code = os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1])
    exits = []
    for number, what in ENDS:
        pid = begin(root / "cut", root / "cache")
        exits.append(end(pid, root / "cut", number, what, rng))
    last = begin(root / "cut", root / "cache")
    exits.append(os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]))
    print(json.dumps({"exits": exits, "whole": code}))


if __name__ == "__main__":
    main()
