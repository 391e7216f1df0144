"""Claims, table and plots of divergence_zoo."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common.arms import ARMS
from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

MEASURES = {
    "nll": "held-out text: NLL",
    "forward": "held-out text: KL(teacher || student)",
    "reverse": "held-out text: KL(student || teacher)",
    "own_forward": "own text: KL(teacher || student)",
    "own_reverse": "own text: KL(student || teacher)",
}


def _better(first: str, second: str, measure: str):
    """By how much the second loss ends farther off than the first: paired seeds."""

    def read(results: Results) -> Effect | None:
        ends = results.values["ends"]
        if first not in ends or second not in ends or len(ends[first][measure]) < 2:
            return None
        return Effect(*mean_interval(np.subtract(ends[second][measure], ends[first][measure])))

    return read


CLAIMS = (
    Claim(
        "A student of forward KL is nearer to the teacher on held-out text than one of text alone "
        "(difference of KL(teacher || student), above 0).",
        "arXiv 1503.02531, section 3",
        "qualitative, other data",
        _better("forward", "alone", "forward"),
        above(0.0),
    ),
    Claim(
        "It predicts the text itself better too (difference of NLL, above 0).",
        "arXiv 1503.02531, section 4",
        "speech: 58.9 % of frames without, 60.8 % with the ensemble's targets",
        _better("forward", "alone", "nll"),
        above(0.0),
    ),
    Claim(
        "Reverse KL makes KL(student || teacher) smaller than forward KL does, on what the student "
        "writes (difference, above 0).",
        "arXiv 2306.08543, section 2 (why reverse KL)",
        "qualitative: mode seeking",
        _better("reverse", "forward", "own_reverse"),
        above(0.0),
    ),
    Claim(
        "Skew KL is nearer to the teacher than forward KL on the student's own text (difference of "
        "KL(student || teacher), above 0).",
        "arXiv 2402.03898 (tables UNVERIFIED)",
        "better than forward KL on instruction following",
        _better("skew", "forward", "own_reverse"),
        above(0.0),
    ),
    Claim(
        "Adaptive KL is nearer to the teacher than forward KL on held-out text (difference of "
        "KL(teacher || student), above 0).",
        "arXiv 2404.02657 (tables UNVERIFIED)",
        "better than forward and reverse KL",
        _better("adaptive", "forward", "forward"),
        above(0.0),
    ),
    Claim(
        "TAID predicts the text better than forward KL (difference of NLL, above 0).",
        "arXiv 2501.16937 (tables UNVERIFIED)",
        "better than all of these on instruction tuning",
        _better("taid", "forward", "nll"),
        above(0.0),
    ),
)


def results(
    methods: Sequence[str], seeds: Sequence[int], artefacts: Mapping[str, Any], folder: Path
) -> Results:
    ends, rows, made = {}, [], {}
    lines: dict[str, dict[str, plots.Line]] = {name: {} for name in ("forward", "own_reverse")}
    for name in methods:
        label = ARMS[name].label
        series = {
            measure: [artefacts[f"{name}_{seed}"].series(f"held_out/{measure}") for seed in seeds]
            for measure in MEASURES
        }
        ends[name] = {m: [values[-1] for _, values in found] for m, found in series.items()}
        rows.append({"loss": label} | {MEASURES[m]: _over_seeds(x) for m, x in ends[name].items()})
        for measure, drawn in lines.items():
            each = np.array([values for _, values in series[measure]])
            effects = [_over_seeds(column.tolist()) for column in each.T]
            drawn[label] = plots.Line(
                series[measure][0][0], *([e[i] for e in effects] for i in range(3))
            )
    for measure, drawn in lines.items():
        made[measure] = plots.lines(
            folder / "plots" / f"{measure}.png",
            drawn,
            x="training step",
            y="nats a token",
            title=MEASURES[measure],
        )
    for measure in ("forward", "own_reverse"):
        made[f"{measure}_ends"] = plots.ranking(
            folder / "plots" / f"{measure}_ends.png",
            {ARMS[name].label: _over_seeds(ends[name][measure]) for name in methods},
            x="nats a token",
            title=f"{MEASURES[measure]}: less is nearer",
        )
    title = f"After training, nats a token (95 % over {len(seeds)} seeds)"
    return Results({"ends": ends}, [Table(title, rows)], made)


def _over_seeds(values: list[float]) -> Effect:
    if len(values) == 1:
        return Effect(values[0], values[0], values[0])
    return Effect(*mean_interval(np.asarray(values)))
