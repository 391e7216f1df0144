"""Claims, tables and plots of portllm_drift."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.merging.common.reporting import line, over_seeds
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below

ROWS = ("updated", "ported", "new", "drift", "residue")
LABELS = {
    "updated": "updated model",
    "ported": "with the old patch",
    "new": "with a new patch",
}


def _of(read: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Callable[[Results], Effect | None]:
    """The effect over seeds of read({row: [seeds, legs + 1]}) -> [seeds]."""

    def effect(results: Results) -> Effect | None:
        rows = {name: np.asarray(x) for name, x in results.values["rows"].items()}
        return over_seeds(read(rows)) if len(rows["new"]) > 1 else None

    return effect


CLAIMS = (
    Claim(
        "The old patch makes the updated model better at the task (nats a character less, a "
        "mean over the legs, paired seeds).",
        "arXiv 2410.10870, tables of the updated models",
        "above the updated model on every task (UNVERIFIED)",
        _of(lambda x: (x["updated"] - x["ported"])[:, 1:].mean(1)),
        above(0.0),
    ),
    Claim(
        "It gives most of what a new patch does: its gain after the first leg, less three quarters "
        "of a new patch's gain (in nats a character).",
        "arXiv 2410.10870, abstract",
        "accuracy comparable to a new patch (UNVERIFIED)",
        _of(lambda x: (x["updated"] - x["ported"] - 0.75 * (x["updated"] - x["new"]))[:, 1]),
        above(0.0),
    ),
    Claim(
        "It gives less the farther the model drifts: old patch less new patch, the last leg less "
        "the first one (in nats a character, paired seeds).",
        "not in the paper: where its assumption ends",
        "–",
        _of(lambda x: (x["ported"] - x["new"])[:, -1] - (x["ported"] - x["new"])[:, 1]),
        above(0.0),
    ),
    Claim(
        "What is neglected is small: the difference of the two patches is under half of the new "
        "one after the first leg (ratio of Frobenius norms).",
        "arXiv 2410.10870, section 3 (by ranks, not norms; UNVERIFIED)",
        "negligible",
        _of(lambda x: x["residue"][:, 1]),
        below(0.5),
        "A patch of rank 8 for a task that the model does not know: two trainings find patches as "
        "far apart as either is long, and both do the task. Other ranks, and a task nearer to the "
        "text, were not tried.",
    ),
)


def results(steps: int, found: Sequence[Artefact], folder: Path) -> Results:
    """values["rows"]: {row: [seeds, legs + 1]}; a table and two plots. steps: of a leg."""
    rows = {name: np.array([x.rows[name] for x in found]) for name in ROWS}
    legs = [steps * leg for leg in range(rows["new"].shape[1])]
    shown = {"drift": "drift", "residue": "residue", **{k: f"{v}: NLL" for k, v in LABELS.items()}}
    table = [
        {"steps since": at} | {label: _effect(rows[name][:, i]) for name, label in shown.items()}
        for i, at in enumerate(legs)
    ]
    made = {
        "task": plots.lines(
            folder / "plots" / "task.png",
            {label: _line(legs, rows[name]) for name, label in LABELS.items()},
            x="training steps of the update",
            y="nats a character of the task",
            title="An old patch on an updated model",
        ),
        "residue": plots.lines(
            folder / "plots" / "residue.png",
            {
                "||new - old patch|| / ||new patch||": _line(legs, rows["residue"]),
                "||updated - first model|| / ||first model||": _line(legs, rows["drift"]),
            },
            x="training steps of the update",
            y="ratio of norms",
            title="What porting neglects, and how far the model drifted",
        ),
    }
    values = {"rows": {name: x.tolist() for name, x in rows.items()}}
    return Results(values, [Table(f"Over {len(found)} seeds (95 %)", table)], made)


def _effect(values: np.ndarray) -> Effect | float:
    return over_seeds(values) if len(values) > 1 else float(values[0])


def _line(legs: Sequence[int], values: np.ndarray) -> plots.Line:
    return line(legs, values) if len(values) > 1 else plots.Line(legs, values[0].tolist())
