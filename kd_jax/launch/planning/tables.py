"""A plan for people: two tables a stage, what would help, and the assumptions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_jax.launch import tables
from kd_jax.launch.claims import Table
from kd_jax.launch.planning import roofline
from kd_jax.launch.planning.chips import GIB

Row = Mapping[str, Any]
SIZES = (
    "parameters",
    "optimizer",
    "carry",
    "frozen",
    "batch",
    "temporaries",
    "outputs",
    "peak",
)


def show(rows: Sequence[Row]) -> None:
    """Prints them; stages that need the same are shown once."""
    if not rows:
        print("Nothing to plan: no stage trains, and none names its programs.")
        return
    for _, (first, *others) in _alike(rows).items():
        also = f" (and {', '.join(stage[0]['stage'] for stage in others)})" if others else ""
        title = _title(first[0], also)
        tables.show(Table(f"{title}: GiB a chip", [_memory(row) for row in first]))
        counted = [_work(row) for row in first if row.get("flops") is not None]
        if counted:
            tables.show(Table(f"{title}: work, GB sent a chip, seconds at least", counted))
        for line in _remarks(first):
            print(line)
    if any(row.get("roofline") for row in rows):
        print("\n".join(roofline.ASSUMPTIONS))


def _alike(rows: Sequence[Row]) -> Mapping[str, list[list[Row]]]:
    """The rows of each stage, gathered under what they say of it."""
    stages: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        place = tuple(row[key] for key in ("module", "preset", "topology", "stage"))
        stages.setdefault(place, []).append(row)
    found: dict[str, list[list[Row]]] = {}
    for stage in stages.values():
        said = [
            {k: v for k, v in row.items() if k not in ("stage", "compile_seconds")} for row in stage
        ]
        found.setdefault(json.dumps(said), []).append(stage)
    return found


def _title(row: Row, also: str) -> str:
    slices = f", {row['slices']} slices" if row["slices"] > 1 else ""
    return (
        f"{row['module']} {row['preset']}, stage {row['stage']}{also} on {row['topology']} "
        f"({row['devices']} chips{slices}, {row['mesh']})"
    )


def _memory(row: Row) -> Row:
    sizes = row.get("bytes") or {}
    shown = {"program": row["program"]}
    shown |= {name: _gib(sizes.get(name)) for name in SIZES}
    if row.get("host_bytes"):
        shown["host"] = _gib(row["host_bytes"])
    return shown | {"of": _gib(row.get("hbm")), "verdict": row["verdict"], "why": row["reason"]}


def _work(row: Row) -> Row:
    shown: dict[str, Any] = {
        "program": row["program"],
        "parameters": row["parameters"],
        "frozen parameters": row["frozen_parameters"],
        "FLOPs": float(row["flops"]),
        "without recomputation": float(row["model_flops"]),
    }
    shown |= {kind: size / 1e9 for kind, size in (row["collectives"] or {}).items()}
    found = row["roofline"]
    if found:
        shown |= {f"{name} s": found[name] for name in ("compute", "memory", "network", "step")}
        shown["utilization"] = found["utilization"]
    return shown


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        for sentence in row.get("help", ()):
            yield f"{row['program']}: {sentence}"


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GIB
