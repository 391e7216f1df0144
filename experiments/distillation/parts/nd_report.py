"""Claims, table and plots of nd_loss."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import endings
from experiments.distillation.parts.nd_stages import LABELS, Name
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds

Ends = dict[str, list[float]]
MEASURES = {
    "accuracy": "test accuracy (%)",
    "norm": "length of features",
    "cosine": "cosine with the class mean",
}


def _gain(first: Name, second: Name, measure: str) -> Callable[[Results], Effect | None]:
    """By how much the first kind ends above the second, paired seeds."""

    def read(results: Results) -> Effect | None:
        ends = results.values["ends"]
        if not {first, second} <= ends.keys():
            return None
        return over_seeds(np.subtract(ends[first][measure], ends[second][measure]))

    return read


_TRIED = (
    "Perceptrons, ten classes, a teacher one point better than its students, whose features are as "
    "long as its own by KD alone, where the paper's are shorter. Weights 2 and 8 were tried on "
    "seeds from 0, for all three losses, with no better accuracy. Residual networks were tried for "
    "300 steps, after which two seeds are up to four points apart; longer trainings of them and a "
    "hundred classes were not."
)
_TABLES = "arXiv 2305.17007, tables of CIFAR-100 and ImageNet"
_ABLATION = "arXiv 2305.17007, abstract: ND helps the most"
CLAIMS = (
    Claim(
        "KD + ND ends more accurate than KD (difference in points of paired seeds, above 0).",
        _TABLES,
        "CIFAR-100, ResNet-56 to 20: 70.66 to 72.53",
        _gain("nd", "kd", "accuracy"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "KD + ND ends more accurate than KD + cosine to the class mean (difference in points of "
        "paired seeds, above 0).",
        _ABLATION,
        "figures UNVERIFIED",
        _gain("nd", "cosine", "accuracy"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "KD + ND ends more accurate than KD + MSE to the teacher's features (difference in points "
        "of paired seeds, above 0).",
        "arXiv 2305.17007, abstract: the distance of features need not help",
        "figures UNVERIFIED",
        _gain("nd", "mse", "accuracy"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "With ND features are longer than with KD alone (difference of mean lengths, above 0).",
        "arXiv 2305.17007, section on norms",
        "qualitative",
        _gain("nd", "kd", "norm"),
        above(0.0),
    ),
    Claim(
        "With ND features point more to the teacher's mean of their class than with KD alone "
        "(difference of mean cosines, above 0).",
        "arXiv 2305.17007, section on directions",
        "qualitative",
        _gain("nd", "kd", "cosine"),
        above(0.0),
    ),
)


def results(methods: Sequence[Name], artefacts: Mapping[str, Any], folder: Path) -> Results:
    """values: "ends" {kind: {measure: [S]}}, "teacher" {measure: number}."""
    ends: dict[Name, Ends] = {name: _end(artefacts[name]) for name in methods}
    teacher = dict(artefacts["class_means"].values)
    teacher["accuracy"] = float(endings.ending(artefacts["teacher"]).accuracy[0])
    rows = [
        {"student of": LABELS[name]} | {said: over_seeds(end[m]) for m, said in MEASURES.items()}
        for name, end in ends.items()
    ]
    rows.append({"student of": "teacher"} | {said: teacher[m] for m, said in MEASURES.items()})
    made = {}
    for measure in ("norm", "cosine"):
        made[measure] = plots.lines(
            folder / "plots" / f"{measure}.png",
            {LABELS[name]: _line(artefacts[name], measure) for name in methods},
            x="training step",
            y=MEASURES[measure],
            title=f"Validation images: {MEASURES[measure]} (95 % over seeds)",
            reference=("teacher", teacher[measure]),
        )
    made["all"] = plots.trade_off(
        folder / "plots" / "all.png",
        {
            f"{LABELS[n]}: {np.mean(end['accuracy']):.1f} %": _path(artefacts[n])
            for n, end in ends.items()
        }
        | {
            f"teacher: {teacher['accuracy']:.1f} %": plots.Line(
                [teacher["norm"]], [teacher["cosine"]]
            )
        },
        x=MEASURES["norm"],
        y=MEASURES["cosine"],
        title="Features along the training, means over seeds; test accuracy at its end",
    )
    seeds = len(next(iter(ends.values()))["norm"])
    title = f"After training (95 % over {seeds} seeds); features of validation images"
    return Results({"ends": ends, "teacher": teacher}, [Table(title, rows)], made)


def _end(artefact: Any) -> Ends:
    last = artefact.values["steps"]
    features = {m: artefact.rows[f"{last}/features/{m}"].tolist() for m in ("norm", "cosine")}
    return {"accuracy": endings.ending(artefact).accuracy.tolist(), **features}


def _line(artefact: Any, measure: str) -> plots.Line:
    steps = artefact.series(f"features/mean_{measure}")[0]
    effects = [over_seeds(artefact.rows[f"{step}/features/{measure}"]) for step in steps]
    return plots.Line(steps, *([effect[i] for effect in effects] for i in range(3)))


def _path(artefact: Any) -> plots.Line:
    return plots.Line(*(artefact.series(f"features/mean_{m}")[1] for m in ("norm", "cosine")))
