"""What digits_merge shows: values, tables, plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merging.common.measuring import SCALES
from experiments.merging.common.reporting import line, over_seeds, places, row, task_means
from experiments.merging.parts.informed import NAMES as INFORMED
from experiments.merging.parts.measures import DROPS, RESCALES, SHARES, mean_negation
from experiments.merging.parts.methods import KINDS, METHODS, ORACLE, STEPS
from kd_jax.launch import plots
from kd_jax.launch.claims import Results, Table

UNSEARCHED = ("pretrained", "greedy soup", *METHODS)
SEARCHED = tuple(name for name, method in METHODS.items() if method.searched)
Values = Mapping[str, Any]


def results(
    names: Sequence[str],
    counts: range,
    orders: Mapping[int, Sequence[str]],
    informed: bool,
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    """orders: the tasks of each seed, in the order in which it merges them; informed: whether
    there are merges that look at data."""
    found = INFORMED if informed else ()
    values = _values(counts, list(orders), found, artefacts)
    models = ("specialist", *UNSEARCHED, *(f"{name}, searched" for name in SEARCHED))
    stages = dict.fromkeys(models, "merged") | dict.fromkeys(found, "informed")
    heat = task_means(stages, names, orders, artefacts)
    return Results(values, _tables(values), _plots(values, heat, names, orders, artefacts, folder))


def _values(
    counts: range, seeds: Sequence[int], informed: Sequence[str], artefacts: Mapping[str, Any]
) -> dict[str, Any]:
    def of(stage: str, key: str) -> list[float]:
        return [artefacts[f"{stage}_{seed}"].values[key] for seed in seeds]

    def along(stage: str, key: str) -> dict[str, list[float]]:
        return {str(n): of(stage, key.format(n)) for n in counts}

    kinds = {"unsearched": UNSEARCHED, "searched": SEARCHED}
    methods = {
        kind: {name: along("merged", f"{name}/{{}}/{kind}") for name in kinds[kind]}
        for kind in kinds
    }
    methods["unsearched"] |= {n: along("informed", f"{n}/{{}}/unsearched") for n in informed}
    swept = [artefacts[f"swept_{seed}"].rows for seed in seeds]
    lost = [mean_negation(rows) for rows in swept]
    last = counts[-1]
    steps = {name: along("ablated", f"{name}/{{}}") for name in STEPS}
    steps |= {name: {str(last): of("ablated", f"{name}/{last}")} for name in (ORACLE, "multitask")}
    return {
        "counts": list(counts),
        "methods": methods,
        "scales": {name: along("merged", f"{name}/{{}}/scale") for name in SEARCHED},
        "steps": steps,
        "conflicts": {kind: along("ablated", f"{kind}/{{}}/share") for kind in KINDS},
        "curves": {
            name: [rows[name].tolist() for rows in swept]
            for name in ("scale", *RESCALES, "linear", "SLERP")
        },
        "negation": {"own": [x[0] for x in lost], "others": [x[1] for x in lost]},
    }


def _tables(values: Values) -> list[Table]:
    def by_count(group: Mapping[str, Mapping[str, list[float]]]) -> list[dict[str, Any]]:
        return [
            row(name, {f"{n} tasks": found for n, found in at.items()})
            for name, at in group.items()
        ]

    methods, of = values["methods"], "normalised accuracy (%)"
    return [
        Table(f"The papers' scales, {of}", by_count(methods["unsearched"])),
        Table(f"Scales chosen, {of}", by_count(methods["searched"])),
        Table("Scales chosen", by_count(values["scales"])),
        Table(f"TIES without its steps, {of}", by_count(values["steps"])),
        Table("Entries that trimming keeps in some model (%)", by_count(values["conflicts"])),
        Table("Subtracted tasks, points lost", [row("pretrained", values["negation"])]),
    ]


def _plots(
    values: Values,
    heat: Mapping[str, Mapping[str, float]],
    names: Sequence[str],
    orders: Mapping[int, Sequence[str]],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> dict[str, Path]:
    where = folder / "plots"
    counts = values["counts"]
    seeds = f"{len(orders)} seeds (95 %)"

    def by_count(group: Mapping[str, Mapping[str, list[float]]]) -> dict[str, plots.Line]:
        """Means of what was measured for every number of tasks; intervals stand in the tables."""
        return {
            name: plots.Line(counts, [float(np.mean(at[str(n)])) for n in counts])
            for name, at in group.items()
            if len(at) == len(counts)
        }

    def curves(labels: Mapping[str, str], x: Sequence[float]) -> dict[str, plots.Line]:
        return {label: line(x, values["curves"][name]) for name, label in labels.items()}

    conflicts = {
        f"{n} tasks": {kind: over_seeds(values["conflicts"][kind][str(n)]) for kind in KINDS}
        for n in counts
    }
    lost = np.mean(
        [
            artefacts[f"swept_{seed}"].rows["negated"][
                np.ix_(places(names, order), places(names, order))
            ]
            for seed, order in orders.items()
        ],
        0,
    )
    lost_of = {
        f"- {task}": dict(zip(names, cells.tolist(), strict=True))
        for task, cells in zip(names, lost, strict=True)
    }
    normalised = "normalised accuracy (%)"
    return {
        "methods": plots.lines(
            where / "methods.png",
            by_count(values["methods"]["searched"]),
            x="specialists merged",
            y=normalised,
            title=f"Scales chosen on validation images, means of {len(orders)} seeds",
        ),
        "unsearched": plots.lines(
            where / "unsearched.png",
            by_count(values["methods"]["unsearched"]),
            x="specialists merged",
            y=normalised,
            title=f"Scales of the papers, means of {len(orders)} seeds",
        ),
        "steps": plots.lines(
            where / "steps.png",
            by_count(values["steps"]),
            x="specialists merged",
            y=normalised,
            title=f"TIES, a step left out or changed, means of {len(orders)} seeds",
        ),
        "tasks": plots.heatmap(
            where / "tasks.png",
            heat,
            x="test images of",
            title=f"Test accuracy (%), {counts[-1]} specialists merged",
        ),
        "conflicts": plots.bars(
            where / "conflicts.png",
            conflicts,
            y="share of the entries kept (%)",
            title=f"Do the trimmed task vectors agree? {seeds}",
        ),
        "negation": plots.heatmap(
            where / "negation.png",
            lost_of,
            x="test images of",
            y="subtracted",
            title="Points of accuracy lost by the pretrained model",
        ),
        "drops": plots.lines(
            where / "drops.png",
            curves({"rescaled": "rescaled", "not rescaled": "not rescaled"}, DROPS),
            x="share of a specialist's task vector that is dropped",
            y=normalised,
            title=f"DARE of single specialists, {seeds}",
        ),
        "scale": plots.lines(
            where / "scale.png",
            curves({"scale": "task arithmetic"}, (0.0, *SCALES)),
            x="scale of the sum of task vectors",
            y=normalised,
            title=f"{counts[-1]} specialists merged, {seeds}",
        ),
        "sphere": plots.lines(
            where / "sphere.png",
            curves({"linear": "straight", "SLERP": "SLERP"}, SHARES),
            x="from the first specialist to the second",
            y=f"{normalised} on both",
            title=f"Between two specialists, {seeds}",
        ),
    }
