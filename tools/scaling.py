"""Plans the steps of experiments/scaling for many chips and writes docs/scaling.md: `make plans`.

    python -m tools.scaling            # plans what docs/scaling.json does not hold yet
    python -m tools.scaling --page     # writes the page again from docs/scaling.json

It takes about an hour on two cores, needs the extra `tpu` and goes on where it was stopped. Delete
docs/scaling.json to plan anew.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.scaling import language_models
from kd_jax.launch import plan
from kd_jax.launch.artefacts import write_json
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.progress import Progress

NAME = "experiments.scaling.language_models"
DOCS = Path(__file__).parents[1] / "docs"
GIB = 2**30


class Case(NamedTuple):
    """A size on a slice: sequences over fsdp, heads over tensor, the batch in microbatches."""

    preset: str
    topology: str
    tensor: int
    microbatches: int

    @property
    def config(self) -> Any:
        return dataclasses.replace(
            language_models.PRESETS[self.preset],
            mesh=MeshConfig(data=1, fsdp=-1, tensor=self.tensor),
            microbatches=self.microbatches,
        )


# Tensor is 1 where every chip gets a sequence of each half of the batch, which costs the least
# communication, and 2 on 256 chips, which are more than there are sequences in a half.
CASES = tuple(
    Case(preset, topology, tensor, microbatches)
    for preset, small in (("1b", 4), ("7b", 8), ("70b", 8))
    for topology, tensor, microbatches in (
        ("v5e:4x4", 1, small),
        ("v5e:16x16", 2, 1),
        ("v5p:4x4x4", 1, 1),
        ("v5p:4x4x8", 1, 1),
    )
)


def missing(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Case, str]]:
    """(case, method) of which there is no row yet."""
    held = {(row["preset"], row["topology"], row["stage"]) for row in rows}
    return [
        (case, method)
        for case in CASES
        for method in case.config.methods
        if (case.preset, case.topology, method) not in held
    ]


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """docs/scaling.md from its template and the rows."""
    text = (DOCS / "scaling.template.md").read_text()
    return text.replace("TABLES\n", "\n".join(_tables(rows)) + "\n")


def _tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    cases = {(case.preset, case.topology): case for case in CASES}
    for preset in dict.fromkeys(case.preset for case in CASES):
        yield f"### {preset.upper()}\n"
        head = "chips", "mesh", "microbatches", "method", "GiB a chip", "verdict"
        head += "PFLOP a step", "GB sent a chip", "seconds", "utilisation"
        yield f"| {' | '.join(head)} |\n|{' --- |' * len(head)}"
        for row in rows:
            if row["preset"] == preset and (preset, row["topology"]) in cases:
                case = cases[preset, row["topology"]]
                yield f"| {' | '.join(_cells(row, case))} |"
        yield ""


def _cells(row: Mapping[str, Any], case: Case) -> Iterator[str]:
    sizes, time = row["bytes"], row["roofline"]
    state = (sizes["parameters"] + sizes["optimizer"] + sizes["frozen"]) / GIB
    yield f"{row['topology']} ({row['devices']})"
    yield row["mesh"]
    yield str(case.microbatches)
    yield row["stage"]
    peak = "" if sizes["peak"] is None else f", in all {sizes['peak'] / GIB:.1f}"
    yield f"state {state:.1f}{peak}"
    yield row["verdict"] if sizes["peak"] is not None else f"{row['verdict']}: {row['reason']}"
    yield f"{row['flops'] / 1e15:.1f}"
    sent = row["collectives"]
    yield "–" if sent is None else f"{sum(sent.values()) / 1e9:.0f}"
    yield "–" if time is None else f"{time['step']:.2f} ({_bound(time)})"
    yield "–" if time is None else f"{time['utilization']:.0%}"


def _bound(time: Mapping[str, float]) -> str:
    return max(("compute", "memory", "network"), key=lambda name: time[name])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.scaling", description=__doc__)
    parser.add_argument("--page", action="store_true", help="plan nothing")
    arguments = parser.parse_args(argv)
    file = DOCS / "scaling.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    todo = [] if arguments.page else missing(rows)
    with Progress("plans", len(todo)) as progress:
        for number, (case, method) in enumerate(todo, 1):
            config = dataclasses.replace(case.config, methods=(method,))
            new = plan.of(language_models, NAME, case.preset, config, case.topology)
            rows += new
            write_json(file, rows)
            verdict = f"{new[0]['verdict']} ({new[0]['reason']})"
            print(f"{number}/{len(todo)} {case.preset} {method} on {case.topology}: {verdict}")
            sys.stdout.flush()
            progress.update(number, 0.0, 0.0, 0.0)
    order = {(case.preset, case.topology): i for i, case in enumerate(CASES)}
    rows.sort(key=lambda row: order.get((row["preset"], row["topology"]), len(order)))
    (DOCS / "scaling.md").write_text(page(rows))
    print(f"wrote {DOCS / 'scaling.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
