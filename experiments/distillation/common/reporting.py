"""What the reports of the family share: students against their teacher, with intervals over seeds.

A student's stage is named "{name}_{seed}" and measured by `measuring.along`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Effect, Results, Table
from kd_jax.launch.effects import over_seeds, shown

MEASURES = {
    "nll": "held-out text: NLL",
    "forward": "held-out text: KL(teacher || student)",
    "reverse": "held-out text: KL(student || teacher)",
    "own_forward": "own text: KL(teacher || student)",
    "own_reverse": "own text: KL(student || teacher)",
}


def better(first: str, second: str, measure: str) -> Callable[[Results], Effect | None]:
    """For a claim: by how much the second kind ends farther off than the first, paired seeds.

    None where one of them was not run, or for one seed only.
    """

    def read(results: Results) -> Effect | None:
        ends = results.values["ends"]
        if first not in ends or second not in ends or len(ends[first][measure]) < 2:
            return None
        return over_seeds(np.subtract(ends[second][measure], ends[first][measure]).tolist())

    return read


def ends_of(
    artefacts: Mapping[str, Artefact], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """{name: {measure: its last value in each repetition}}."""
    return {
        name: {
            measure: [artefacts[f"{name}_{s}"].series(f"held_out/{measure}")[1][-1] for s in seeds]
            for measure in MEASURES
        }
        for name in names
    }


def results(
    labels: Mapping[str, str],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
    *,
    drawn: Sequence[str] = ("forward", "own_reverse"),
) -> Results:
    """values["ends"], a table, and of each measure in `drawn` a plot along training and at its end.

    labels: {name: label} of the kinds of students.
    """
    ends = ends_of(artefacts, list(labels), seeds)
    rows = [
        {"student": label} | {MEASURES[m]: shown(over_seeds(x)) for m, x in ends[name].items()}
        for name, label in labels.items()
    ]
    made = {}
    for measure in drawn:
        made[measure] = plots.lines(
            folder / "plots" / f"{measure}.png",
            {label: _line(artefacts, name, seeds, measure) for name, label in labels.items()},
            x="training step",
            y="nats a token",
            title=MEASURES[measure],
        )
        made[f"{measure}_ends"] = plots.ranking(
            folder / "plots" / f"{measure}_ends.png",
            {label: over_seeds(ends[name][measure]) for name, label in labels.items()},
            x="nats a token",
            title=f"{MEASURES[measure]}: less is nearer",
        )
    title = f"After training, nats a token (95 % over seeds, of which there are {len(seeds)})"
    return Results({"ends": ends}, [Table(title, rows)], made)


def _line(
    artefacts: Mapping[str, Artefact], name: str, seeds: Sequence[int], measure: str
) -> plots.Line:
    series = [artefacts[f"{name}_{seed}"].series(f"held_out/{measure}") for seed in seeds]
    effects = [over_seeds(column.tolist()) for column in np.array([y for _, y in series]).T]
    return plots.Line(series[0][0], *([effect[i] for effect in effects] for i in range(3)))
