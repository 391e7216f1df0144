"""Claims, tables and plots of mtard_robust."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.effects import over_seeds, shown

LABELS = {
    "labels": "labels (adversarial training)",
    "robust": "robust teacher alone (as ARD)",
    "halves": "both teachers, a half each",
    "shares": "losses balanced (MTARD)",
    "both": "entropies balanced too (B-MTARD)",
}
TEACHERS = ("accurate teacher", "robust teacher")
MEASURES = {
    "clean": "clean accuracy, %",
    "robust": "accuracy under PGD, %",
    "mean": "mean of the two, %",
    "gap": "clean less robust, points",
}


def _more(measure: str, first: str, second: str) -> Callable[[Results], Effect | None]:
    """By how much a measure of the first kind is above that of the second, paired seeds."""

    def read(results: Results) -> Effect | None:
        ends = results.values["ends"]
        if first not in ends or second not in ends:
            return None
        return over_seeds(np.subtract(ends[first][measure], ends[second][measure]))

    return read


_SIZES = (
    "Perceptrons, 5,000 images, 1,000 steps and attacks of 5 steps in training; the paper has "
    "ResNets, 300 epochs of CIFAR and attacks of 10 steps. On validation images two rates and 400 "
    "and 600 steps were looked at."
)
_SHARE = (
    " The accurate teacher's loss falls by less of where it began than the robust one's, so its "
    "weight rises to 0.6: students become more accurate on clean images and lose more than that "
    "under attack. The rate of the weights was not varied."
)

CLAIMS = (
    Claim(
        "B-MTARD's mean of clean and robust accuracy is above adversarial training's (difference, "
        "points, above 0).",
        "arXiv 2306.16170, abstract (numbers UNVERIFIED)",
        "best weighted accuracy of the methods compared",
        _more("mean", "both", "labels"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "It is above that of a student of the robust teacher alone (difference, points, above 0).",
        "arXiv 2306.16170, abstract (numbers UNVERIFIED)",
        "best weighted accuracy of the methods compared",
        _more("mean", "both", "robust"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "Balanced losses, as in MTARD, have a higher mean than a half each (difference, points, "
        "above 0).",
        "arXiv 2306.16170, ablation (numbers UNVERIFIED)",
        "qualitative: the balance of losses helps",
        _more("mean", "shares", "halves"),
        above(0.0),
        _SIZES + _SHARE,
    ),
    Claim(
        "With the entropies balanced too, as in B-MTARD, the mean is higher than with the losses "
        "alone (difference, points, above 0).",
        "arXiv 2306.16170, ablation (numbers UNVERIFIED)",
        "qualitative: the balance of entropies helps",
        _more("mean", "both", "shares"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "B-MTARD has clean and robust accuracy nearer together than a half each (difference of "
        "clean less robust, points, below 0).",
        "arXiv 2306.16170 (the imbalance that it is against)",
        "qualitative",
        _more("gap", "both", "halves"),
        below(0.0),
        _SIZES,
    ),
)


def results(methods: Sequence[str], artefacts: Mapping[str, Any], folder: Path) -> Results:
    """values["ends"]: {kind of students: {measure: [S]}}; ["teachers"]: {measure: [2]}."""
    ends = {name: _measured(artefacts[f"{name}_scored"]) for name in methods}
    sources = _measured(artefacts["teachers_scored"])
    effects = {name: {m: over_seeds(x) for m, x in found.items()} for name, found in ends.items()}
    rows = [
        {"model": title} | {MEASURES[m]: x[i] for m, x in sources.items()}
        for i, title in enumerate(TEACHERS)
    ]
    rows += [
        {"model": LABELS[name]} | {MEASURES[m]: shown(x) for m, x in found.items()}
        for name, found in effects.items()
    ]
    points = dict(zip(TEACHERS, zip(sources["clean"], sources["robust"], strict=True), strict=True))
    points |= {
        LABELS[name]: (x["clean"].estimate, x["robust"].estimate) for name, x in effects.items()
    }
    made = {
        "plane": plots.trade_off(
            folder / "plots" / "plane.png",
            {label: plots.Line([x], [y]) for label, (x, y) in points.items()},
            x=MEASURES["clean"],
            y=MEASURES["robust"],
            title="Test images as they are, and attacked",
        ),
        "accuracy": plots.bars(
            folder / "plots" / "accuracy.png",
            {
                title: {LABELS[name]: x[measure] for name, x in effects.items()}
                for measure, title in (("clean", "clean"), ("robust", "attacked"), ("mean", "mean"))
            },
            y="test accuracy, %",
            title="Test images as they are, attacked, and the mean of the two",
        ),
    }
    balanced = [name for name in ("shares", "both") if name in methods]
    if balanced:
        made["share"] = plots.lines(
            folder / "plots" / "share.png",
            {LABELS[name]: _along(artefacts[name], "share") for name in balanced},
            x="training step",
            y="share",
            title="The clean loss's share of the weights",
            reference=("a half", 0.5),
        )
    if "both" in methods:
        made["temperatures"] = plots.lines(
            folder / "plots" / "temperatures.png",
            {f"{side} teacher": _along(artefacts["both"], side) for side in ("clean", "robust")},
            x="training step",
            y="temperature",
            title="B-MTARD's temperatures",
        )
    seeds = len(next(iter(ends.values()))["mean"])
    title = f"Test images ({seeds} seeds, 95 %)"
    return Results({"ends": ends, "teachers": sources}, [Table(title, rows)], made)


def _measured(scores: Any) -> dict[str, list[float]]:
    clean, robust = (np.asarray(scores.rows[side], np.float64) for side in ("clean", "robust"))
    found = {"clean": clean, "robust": robust, "mean": (clean + robust) / 2, "gap": clean - robust}
    return {measure: x.tolist() for measure, x in found.items()}


def _along(training: Any, name: str) -> plots.Line:
    """A quantity of `attacks.balance` with its interval over seeds."""
    found = {}
    for key, values in training.rows.items():
        step, *rest = key.split("/")
        if rest == ["balance", name]:
            found[int(step)] = over_seeds(values)
    steps = sorted(found)
    return plots.Line(steps, *([found[step][i] for step in steps] for i in range(3)))
