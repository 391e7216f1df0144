"""Claims, tables and plots of sla_fewshot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import endings
from experiments.distillation.parts.views import CLASSES
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.effects import over_seeds, shown

# Before the name of an evaluation: of four rotations of an image at once.
TOGETHER = "together_"
LABELS = {
    "alone": "class only",
    "augmented": "DA",
    "augmented_averaged": "DA, mean of 4",
    "multi_task": "MT",
    "joint": "SLA+SI",
    "joint_aggregated": "SLA+AG (4 passes)",
    "distilled": "SLA+SD",
}
_OF_FOUR = {"augmented_averaged": "augmented", "joint_aggregated": "joint"}
TITLES = {"fashion_mnist": "Fashion-MNIST", "digits": "digits"}


def _difference(data: str, first: str, second: str) -> Callable[[Results], np.ndarray | None]:
    """Points by which the first measure is above the second, [S], a mean over numbers of images."""

    def read(results: Results) -> np.ndarray | None:
        found = results.values["accuracy"].get(data, {})
        if first not in found or second not in found:
            return None
        one, two = (np.array(list(found[name].values())) for name in (first, second))
        return (one - two).mean(0)

    return read


def _gain(data: str, first: str, second: str = "alone") -> Callable[[Results], Effect | None]:
    def effect(results: Results) -> Effect | None:
        found = _difference(data, first, second)(results)
        return None if found is None else over_seeds(found)

    return effect


def _more(first: str, second: str, measure: str) -> Callable[[Results], Effect | None]:
    """By how much a measure gains more over `class only` on the first data than on the second."""

    def effect(results: Results) -> Effect | None:
        one, two = (_difference(data, measure, "alone")(results) for data in (first, second))
        return None if one is None or two is None else over_seeds(one - two)

    return effect


CLAIMS = (
    Claim(
        "Few images of Fashion-MNIST: SLA, aggregated over four rotations, has a higher test "
        "accuracy than training on the class alone (points, a mean over numbers of images, above "
        "0).",
        "arXiv 1910.05872, CIFAR-100 (UNVERIFIED)",
        "CIFAR-100, ResNet-32: 68.27 to 74.14 % (UNVERIFIED)",
        _gain("fashion_mnist", "joint_aggregated"),
        above(0.0),
    ),
    Claim(
        "Distilled into a head of one view, SLA+SD is still above it, in one pass (above 0).",
        "arXiv 1910.05872, CIFAR-100 (UNVERIFIED)",
        "CIFAR-100, ResNet-32: 68.27 to 71.85 % (UNVERIFIED)",
        _gain("fashion_mnist", "distilled"),
        above(0.0),
        "Both heads soon fit the few images: from step 100 (5 of each class) or 200 (20) on the "
        "distilled term is below 0.003 nats and teaches nothing. A rate of 3e-3 was no better (two "
        "seeds, 20 of each class, validation images). More images, higher temperatures, other "
        "weights of the terms and larger networks were not tried.",
    ),
    Claim(
        "Four rotations together are more accurate than one view of the same network (SLA+AG less "
        "SLA+SI, above 0).",
        "arXiv 1910.05872, section 2.2",
        "qualitative",
        _gain("fashion_mnist", "joint_aggregated", "joint"),
        above(0.0),
    ),
    Claim(
        "Rotation as plain augmentation hurts (DA less class only, below 0).",
        "arXiv 1910.05872, section 2.1",
        "hurts on CIFAR-100 (UNVERIFIED)",
        _gain("fashion_mnist", "augmented"),
        below(0.0),
    ),
    Claim(
        "Where rotations are ambiguous they are worth less: SLA+AG gains more over class only on "
        "Fashion-MNIST than on digits (difference of gains, above 0).",
        "a control of this reproduction",
        "not in the paper",
        _more("fashion_mnist", "digits", "joint_aggregated"),
        above(0.0),
    ),
)


def measured(
    methods: Sequence[str],
    counts: Sequence[int],
    targets: Mapping[str, np.ndarray],
    artefacts: Mapping[str, Any],
) -> Results:
    """values["accuracy"]: {data: {measure: {images of each class: % [S]}}}, and tables.

    targets: the labels of the test images of each data set. Stages are "{method}_{data}_{count}".
    """
    ends = _ends(methods, counts, targets, artefacts)
    accuracy = {
        d: {m: {str(c): end.accuracy.tolist() for c, end in of.items()} for m, of in each.items()}
        for d, each in ends.items()
    }
    rows = [
        {"data": TITLES[d], "images of each class": c}
        | {LABELS[m]: shown(over_seeds(of[c].accuracy)) for m, of in each.items()}
        for d, each in ends.items()
        for c in counts
    ]
    tables = [Table("Test accuracy (%), 95 % over seeds", rows)]
    if "digits" in ends:
        tables.append(_confused(ends["digits"], targets["digits"]))
    return Results({"accuracy": accuracy}, tables)


def results(
    methods: Sequence[str],
    counts: Sequence[int],
    targets: Mapping[str, np.ndarray],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    """`measured`, with plots: accuracy, gains over class only, and the digits recognised."""
    found = measured(methods, counts, targets, artefacts)
    ends = _ends(methods, counts, targets, artefacts)
    made = {}
    for data, each in ends.items():
        made[f"accuracy_{data}"] = plots.lines(
            folder / "plots" / f"accuracy_{data}.png",
            {LABELS[m]: _line(of) for m, of in each.items()},
            x="training images of each class",
            y="test accuracy (%)",
            title=f"What few images of {TITLES[data]} teach (95 % over seeds)",
        )
    if "alone" in methods:
        made["gains"] = plots.bars(
            folder / "plots" / "gains.png",
            {TITLES[data]: _gains(found, data, list(each)) for data, each in ends.items()},
            y="points above class only",
            title="Gain over training on the class alone (95 % over seeds)",
        )
    if "digits" in ends:
        made["digits"] = plots.heatmap(
            folder / "plots" / "digits.png",
            {LABELS[m]: _recall(of, targets["digits"]) for m, of in ends["digits"].items()},
            x="true digit",
            title="Digits that are recognised (%)",
        )
    return found._replace(plots=made)


def _ends(
    methods: Sequence[str],
    counts: Sequence[int],
    targets: Mapping[str, np.ndarray],
    artefacts: Mapping[str, Any],
) -> dict[str, dict[str, dict[int, endings.Ending]]]:
    """{data: {measure: {images of each class: ending}}}."""

    def ending(data: str, measure: str, count: int) -> endings.Ending:
        split = f"{TOGETHER}test" if measure in _OF_FOUR else "test"
        name = f"{_OF_FOUR.get(measure, measure)}_{data}_{count}"
        return endings.ending(artefacts[name], split=split)

    measures = [m for m in LABELS if _OF_FOUR.get(m, m) in methods]
    return {d: {m: {c: ending(d, m, c) for c in counts} for m in measures} for d in targets}


def _gains(found: Results, data: str, measures: Sequence[str]) -> dict[str, Effect]:
    each = {LABELS[m]: _gain(data, m)(found) for m in measures if m != "alone"}
    return {label: effect for label, effect in each.items() if effect is not None}


def _line(of: Mapping[int, endings.Ending]) -> plots.Line:
    effects = [over_seeds(end.accuracy) for end in of.values()]
    return plots.Line(list(of), *([e[i] for e in effects] for i in range(3)))


def _recall(of: Mapping[int, endings.Ending], targets: np.ndarray) -> dict[str, float]:
    """{class: % of its images that are recognised}, a mean over seeds and numbers of images."""
    right = np.mean([end.predicted == targets for end in of.values()], (0, 1))
    return {str(c): float(100 * right[targets == c].mean()) for c in range(CLASSES)}


def _confused(each: Mapping[str, Mapping[int, endings.Ending]], targets: np.ndarray) -> Table:
    def share(ends: Sequence[endings.Ending], true: int, said: int) -> Effect | float:
        """Over seeds, of each the mean over numbers of images."""
        mistaken = [(end.predicted[:, targets == true] == said).mean(-1) for end in ends]
        return shown(over_seeds(100 * np.mean(mistaken, 0)))

    rows = [
        {
            "trained and read as": LABELS[m],
            "6 called 9 (%)": share(list(of.values()), 6, 9),
            "9 called 6 (%)": share(list(of.values()), 9, 6),
        }
        for m, of in each.items()
    ]
    return Table("Digits that turn into each other", rows)
