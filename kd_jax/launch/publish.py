"""Copies the small files of a finished run to experiments/results, where they are committed.

    python -m kd_jax.launch.publish runs/unlearning/npo_tofu/laptop-1a2b3c4d

and writes REPRODUCTIONS.md anew. Absolute paths and bucket names in what is published are cut to
their last part.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax.launch import report
from kd_jax.launch.artefacts import write_json
from kd_jax.launch.cli import Parser
from kd_jax.launch.environment import scrub
from kd_jax.launch.errors import UserError

PLOT_LIMIT = 300_000  # bytes
METRIC_LINES = 400


def publish(run: str | Path, into: str | Path = "experiments/results") -> tuple[Path, list[str]]:
    """Copies the run's small files; returns their folder and a note on each file left out.

    UserError where the folder is no finished run.
    """
    run = Path(run)
    results = _read(run / "results.json", "is this a finished run?")
    config = _read(run / "config.json", "is this a run's folder?")
    environment = _read(run / "environment.json", "is this a run's folder?")
    if config["hash"] != results["hash"]:
        raise UserError(f"{run}: results.json is of another config than config.json; run it again")
    target = Path(into, *results["module"].split(".")[1:], results["preset"])
    fresh = target.with_name(target.name + ".new")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(parents=True)
    for name, data in (
        ("results.json", results),
        ("config.json", config),
        ("environment.json", environment),
    ):
        write_json(fresh / name, scrub(data))
    left_out = []
    for file in sorted(run.glob("tables/*")):
        (fresh / "tables").mkdir(exist_ok=True)
        shutil.copyfile(file, fresh / "tables" / file.name)
    for file in sorted(run.glob("plots/*")):
        size = file.stat().st_size
        if file.suffix != ".png" or size > PLOT_LIMIT:
            left_out.append(f"{file}: {size / 1e3:.0f} kB; takes PNG up to {PLOT_LIMIT / 1e3:.0f}")
            continue
        (fresh / "plots").mkdir(exist_ok=True)
        shutil.copyfile(file, fresh / "plots" / file.name)
    if (run / "metrics.jsonl").exists():
        kept = trim((run / "metrics.jsonl").read_text().splitlines())
        (fresh / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)
    return target, left_out


def trim(lines: Sequence[str], limit: int = METRIC_LINES) -> list[str]:
    """At most `limit` lines, evenly spaced, the first and the last among them."""
    if len(lines) <= limit:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (limit - 1))] for i in range(limit)]


def _read(path: Path, question: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {question}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m kd_jax.launch.publish", description=__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--into", default="experiments/results")
    try:
        arguments = parser.parse_args(argv)
        target, left_out = publish(arguments.run, arguments.into)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in left_out:
        print(f"left out {note}")
    print(f"published to {target}")
    return report.main(["--results", arguments.into])


if __name__ == "__main__":
    sys.exit(main())
