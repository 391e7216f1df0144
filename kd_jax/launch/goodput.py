"""Which share of a run's time went into steps that were kept, over all of its starts.

A run appends what happens to it to one file (`Events`); `goodput` reckons from its lines.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.launch import runtime
from kd_jax.launch.errors import UserError

LOST: tuple[str, ...] = ("start-up", "compile", "save", "evaluation", "down", "repeated", "other")
_STALLS = {"save_begin": "save", "evaluation_begin": "evaluation"}
_PHASES = {"ready": "start-up", "compiled": "steps", "stop": "other"}


class Events:
    """Appends {"time": unix seconds, "event", "stage", "step", ...} lines to a file.

    One a process: it writes "start" without a stage, of the time `began` if that is given. `fit`
    writes the rest: "ready" (the step it goes on from), "compiled" (seconds), "step" (finished, at
    each log interval), "save_begin", "save_end", "evaluation_begin", "evaluation_end" and "stop".
    Processes other than the first write nothing. UserError when the file cannot be written.
    """

    def __init__(self, path: str | Path, *, began: float | None = None):
        self._stage: str | None = None
        self._file = None
        if not runtime.is_main():
            return
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        if torn:
            # A kill cut the last line off; what follows must not become part of it.
            self._file.write("\n")
        self._write("start", None, {} if began is None else {"time": began})

    def begin(self, stage: str) -> None:
        """ "start" of a stage; the lines from here on are its own."""
        self._stage = stage
        self._write("start", None, {})

    def add(self, event: str, step: int | None = None, **more: Any) -> None:
        self._write(event, step, more)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, event: str, step: int | None, more: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        line = {"time": time.time(), "event": event, "stage": self._stage, "step": step, **more}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class Goodput(NamedTuple):
    """goodput: share of `seconds`, from the first start to the last event, spent in kept steps.
    lost: the rest, in seconds, by the names in `LOST`.
    """

    goodput: float
    lost: Mapping[str, float]
    seconds: float


def goodput(lines: Iterable[str]) -> Goodput:
    """The goodput of a run from the lines of its events; lines cut off by a kill are passed over.

    The time between two events is that of the steps between them, or of what the first began.
    "down": from the last line of a start to the next start; of a killed start, this holds the
        steps that it had not logged.
    "repeated": steps finished beyond the step from which a later start went on.
    "start-up": up to the first batch; "compile": the first call of the step; "other": what lies
        between two trainings. The wait for input is not seen: it is part of the steps.
    """
    records = _read(lines)
    kept_up_to = _kept_up_to(records)
    kept, lost = 0.0, dict.fromkeys(LOST, 0.0)
    phase = "other"
    for before, after, limit in zip(records, records[1:], kept_up_to, strict=False):
        event = before["event"]
        phase = _PHASES.get(event, phase)
        if event == "start":
            phase = "start-up" if before["stage"] is None else "other"
        # Starts on two machines may disagree on the time.
        seconds = max(after["time"] - before["time"], 0.0)
        if after["event"] == "start" and after["stage"] is None:
            lost["down"] += seconds
        elif event in _STALLS:
            lost[_STALLS[event]] += seconds
        elif after["event"] == "ready":
            lost["start-up"] += seconds
        elif after["event"] == "compiled":
            compiling = min(after["seconds"], seconds)
            lost["compile"] += compiling
            lost["start-up"] += seconds - compiling
        elif phase == "steps":
            share = _share(before["step"], after["step"], limit)
            kept += share * seconds
            lost["repeated"] += (1 - share) * seconds
        else:
            lost[phase] += seconds
    seconds = kept + sum(lost.values())
    return Goodput(kept / seconds if seconds else 0.0, lost, seconds)


def summary(found: Goodput) -> str:
    """'goodput 81 % of 1:02:03, lost: compile 12 %, save 7 %'; what is under 0.5 % is left out."""
    shares = {name: x / found.seconds for name, x in found.lost.items() if found.seconds}
    lost = [
        f"{name} {share:.0%}"
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= 0.005
    ]
    minutes, rest = divmod(round(found.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"goodput {found.goodput:.0%} of {hours}:{minutes:02}:{rest:02}"
    return text + (f", lost: {', '.join(lost)}" if lost else "")


def _share(first: int, last: int, limit: float) -> float:
    """The share of the steps after `first` up to `last` that no later start did again."""
    if last <= first:
        return float(first <= limit)
    return max(min(last, limit) - first, 0) / (last - first)


def _kept_up_to(records: list[dict[str, Any]]) -> list[float]:
    """For each record: the last step of its stage that no later start does again."""
    found, limits = [], {}
    for record in reversed(records):
        stage = record["stage"]
        found.append(limits.get(stage, float("inf")))
        if record["event"] == "ready":
            limits[stage] = min(limits.get(stage, float("inf")), record["step"])
    return found[::-1]


def _read(lines: Iterable[str]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records
