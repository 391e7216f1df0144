"""Claims, tables and plots of dual_head."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import endings
from experiments.distillation.parts.dual_arms import ARMS, Name
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.effects import over_seeds

SIDES = ("classifier", "backbone")
Ends = dict[Name, endings.Ending]
Cosines = dict[Name, dict[str, list[list[float]]]]


def _gain(name: Name, others: tuple[Name, Name], of: Callable[[float, float], float]):
    """Accuracy less that of one of two others, the better (max) or the worse (min) in the mean."""

    def read(results: Results) -> Effect | None:
        found = results.values["accuracy"]
        if not {name, *others} <= found.keys():
            return None
        means = [float(np.mean(found[other])) for other in others]
        other = others[means.index(of(*means))]
        return over_seeds(np.subtract(found[name], found[other]))

    return read


def _cosine(name: Name, side: str) -> Callable[[Results], Effect | None]:
    """The mean along the training, but for its start."""

    def read(results: Results) -> Effect | None:
        found = results.values["cosines"].get(name)
        return found and over_seeds(np.mean(found[side][1:], 0))

    return read


_TRIED = (
    "Perceptrons of two hidden layers, ten classes, a teacher one point better than its students, "
    "AdamW. 5000 images seen 15 times and 2000 seen 96 times were tried on seeds from 0: cosines "
    "have the same signs. Convolutions, 100 classes, SGD and other weights than 1 were not tried."
)
_DEGENERATION = "arXiv 2411.08937, abstract: behind either loss in isolation"
_CONFLICT = "arXiv 2411.08937, abstract, and its analysis of gradients"
CLAIMS = (
    Claim(
        "Labels and BinaryKL on one head end less accurate than the worse of the two alone "
        "(difference in points of paired seeds, below 0).",
        _DEGENERATION,
        "CIFAR-100, figures UNVERIFIED",
        _gain("binary_one", ("ce", "binary_alone"), min),
        below(0.0),
        _TRIED,
    ),
    Claim(
        "Labels and BinaryKL-Norm on one head end less accurate than the worse of the two alone "
        "(difference in points of paired seeds, below 0).",
        _DEGENERATION,
        "CIFAR-100, figures UNVERIFIED",
        _gain("norm_one", ("ce", "norm_alone"), min),
        below(0.0),
        _TRIED,
    ),
    Claim(
        "DHKD ends more accurate than the better of its two losses alone (difference in points of "
        "paired seeds, above 0).",
        "arXiv 2411.08937, abstract: the good of both losses is kept",
        "CIFAR-100, figures UNVERIFIED",
        _gain("norm_dhkd", ("ce", "norm_alone"), max),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "In the classifier of one head the gradients of labels and BinaryKL-Norm run against each "
        "other (mean cosine along the training, below 0).",
        _CONFLICT,
        "contradictory",
        _cosine("norm_one", "classifier"),
        below(0.0),
        _TRIED,
    ),
    Claim(
        "In the backbone below it they do not (mean cosine along the training, above 0).",
        _CONFLICT,
        "no conflict",
        _cosine("norm_one", "backbone"),
        above(0.0),
    ),
)


def results(methods: Sequence[Name], artefacts: Mapping[str, Any], folder: Path) -> Results:
    """values: "accuracy" {kind: [S]}, "cosines" {kind: {side: [points][S]}}, "whole" {"kind/side":
    [S]}, "teacher"."""
    ends: Ends = {name: endings.ending(artefacts[name]) for name in methods}
    accuracy = {name: end.accuracy.tolist() for name, end in ends.items()}
    cosines: Cosines = {n: _along(artefacts[n]) for n in methods if ARMS[n].compared}
    teacher = float(endings.ending(artefacts["teacher"]).accuracy[0])
    whole = artefacts["whole"].rows if "whole" in artefacts else {}
    values = {"accuracy": accuracy, "cosines": cosines, "teacher": teacher}
    values["whole"] = {name: x.tolist() for name, x in whole.items()}
    tables = [_accuracies(ends), *([_cosines(cosines, whole)] if cosines else [])]
    made = {}
    if "ce" in methods and len(methods) > 1:
        made["gain"] = plots.ranking(
            folder / "plots" / "gain.png",
            {ARMS[n].label: _over(ends, n) for n in methods if n != "ce"},
            x="points above CE alone (95 % over seeds)",
            title=f"Test accuracy: CE {np.mean(accuracy['ce']):.1f} %, teacher {teacher:.1f} %",
        )
    for side in SIDES:
        lines = {
            ARMS[name].label: _line(artefacts[name], found[side])
            for name, found in cosines.items()
            if side == "backbone" or ARMS[name].heads == "one"
        }
        if lines:
            made[side] = plots.lines(
                folder / "plots" / f"{side}.png",
                lines,
                x="training step",
                y="cosine of the gradients of both losses",
                title=f"Do the two losses agree in the {side}? (95 % over seeds)",
                reference=("orthogonal", 0.0),
            )
    return Results(values, tables, made)


def _accuracies(ends: Ends) -> Table:
    rows = []
    for name, end in ends.items():
        row: dict[str, Any] = {
            "student of": ARMS[name].label,
            "test accuracy (%)": over_seeds(end.accuracy),
            "test NLL": over_seeds(end.nll),
        }
        if "ce" in ends and name != "ce":
            row["points above CE"] = _over(ends, name)
        rows.append(row)
    return Table("After training (95 % over seeds)", rows)


def _cosines(cosines: Cosines, whole: Mapping[str, np.ndarray]) -> Table:
    rows = []
    for name, found in cosines.items():
        row: dict[str, Any] = {"student of": ARMS[name].label}
        for side in SIDES:
            if side == "classifier" and ARMS[name].heads != "one":
                row[side] = "two heads"
            else:
                row[side] = over_seeds(np.mean(found[side][1:], 0))
        for side in SIDES:
            if f"{name}/{side}" in whole:
                row[f"{side}, all images, end"] = over_seeds(whole[f"{name}/{side}"])
        rows.append(row)
    title = "Cosine of the two losses' gradients: of batches along the training, and of all images"
    return Table(f"{title} (95 % over seeds)", rows)


def _along(artefact: Any) -> dict[str, list[list[float]]]:
    steps = artefact.series("gradients/mean_backbone")[0]
    return {
        side: [artefact.rows[f"{step}/gradients/{side}"].tolist() for step in steps]
        for side in SIDES
    }


def _line(artefact: Any, points: Sequence[Sequence[float]]) -> plots.Line:
    effects = [over_seeds(point) for point in points]
    steps = artefact.series("gradients/mean_backbone")[0]
    return plots.Line(steps, *([effect[i] for effect in effects] for i in range(3)))


def _over(ends: Ends, name: Name) -> Effect:
    return over_seeds(ends[name].accuracy - ends["ce"].accuracy)
