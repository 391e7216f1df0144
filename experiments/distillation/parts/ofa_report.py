"""Claims, tables and plots of ofa_hetero."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import endings
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds, shown

Accuracy = Mapping[str, Mapping[str, Sequence[float]]]  # {family of students: {method: [S]}}

LABELS = {
    "ce": "labels alone",
    "kd": "KD, temperature 4",
    "hint": "hint (FitNets)",
    "ofa_10": "OFA, power 1",
    "ofa_15": "OFA, power 1.5",
    "ofa_20": "OFA, power 2",
}
NAMES = {"cnn": "ResNet", "mixer": "Mixer"}


def _both(results: Results, method: str) -> np.ndarray | None:
    """Accuracy, the mean over both students, [S]."""
    found = [accuracy.get(method) for accuracy in results.values["accuracy"].values()]
    return None if None in found else np.mean(found, 0)


def _better(first: str, second: str) -> Callable[[Results], Effect | None]:
    """By how many points the first method is more accurate than the second, paired seeds."""

    def read(results: Results) -> Effect | None:
        ours, theirs = _both(results, first), _both(results, second)
        return None if ours is None or theirs is None else over_seeds(ours - theirs)

    return read


def _more_alike(results: Results) -> Effect | None:
    """CKA of students of labels with teachers of their own family less that with the other's."""
    same, other = (results.values["cka_of_labels"][name] for name in ("same", "other"))
    return over_seeds(np.subtract(same, other)) if same else None


_SIZES = (
    "Students of a few thousand parameters, 1,000 images of 28 x 28 pixels, 400 steps, exits at "
    "two stages; the paper has CIFAR-100 and ImageNet, and exits at four. On validation images "
    "1,000 and 4,000 to train on were looked at; rates and weights were not varied."
)

CLAIMS = (
    Claim(
        "OFA (power 1.5) is more accurate than labels alone (points, mean of both students, above "
        "0).",
        "arXiv 2310.19444, tables 1 and 2 (numbers UNVERIFIED)",
        "in every pair",
        _better("ofa_15", "ce"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "OFA (power 1.5) is more accurate than KD (points, mean of both students, above 0).",
        "arXiv 2310.19444, abstract",
        "up to +8.0 on CIFAR-100 and +0.7 on ImageNet over the best before",
        _better("ofa_15", "kd"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "KD is more accurate than hints (points, mean of both students, above 0).",
        "arXiv 2310.19444, tables 1 and 2 (numbers UNVERIFIED)",
        "FitNets is below KD across families",
        _better("kd", "hint"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "A power of 1.5 is more accurate than 1 (points, mean of both students, above 0).",
        "arXiv 2310.19444, ablation of the power (numbers UNVERIFIED)",
        "powers above 1 help",
        _better("ofa_15", "ofa_10"),
        above(0.0),
        _SIZES,
    ),
    Claim(
        "Hidden layers of students of labels alone are less like those of a teacher of the other "
        "family than of their own (linear CKA, mean over layers and students, own less other, "
        "above 0).",
        "arXiv 2310.19444, figure 2 (number UNVERIFIED)",
        "qualitative",
        _more_alike,
        above(0.0),
    ),
)


def results(
    other: Mapping[str, str],
    families: Sequence[str],
    methods: Sequence[str],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    """values["accuracy"]: {family of students: {method: [S]}}, in %; ["cka"]: {"<students>/<family
    of teacher>": [S], a mean over layers}; ["cka_of_labels"]: {"same", "other": [S]}.
    """
    accuracy = {
        family: {
            method: endings.ending(artefacts[f"{family}_{method}"]).accuracy.tolist()
            for method in methods
        }
        for family in families
    }
    taught = [family for family in other if f"teacher_{family}" in artefacts]
    teachers = {x: float(endings.ending(artefacts[f"teacher_{x}"]).accuracy[0]) for x in taught}
    layers = {
        f"{family}_{method}/{x}": artefacts["similarity"].rows[f"{family}_{method}/teacher_{x}"]
        for family in families
        for method in methods
        for x in taught
    }
    alike = {name: x.mean((1, 2)).tolist() for name, x in layers.items()}
    of_labels: dict[str, list[float]] = {"same": [], "other": []}
    if "ce" in methods:
        for name, of in (("same", dict(zip(other, other, strict=True))), ("other", other)):
            found = [alike[f"{family}_ce/{of[family]}"] for family in families]
            of_labels[name] = np.mean(found, 0).tolist()
    made = {}
    if "ce" in methods:
        made["gain"] = _gains(accuracy, other, folder)
        made["cka"] = plots.heatmap(
            folder / "plots" / "cka.png",
            _layers({x: {y: layers[f"{x}_ce/{y}"] for y in taught} for x in families}),
            x="teacher's layer",
            y="student's layer",
            title="Linear CKA of students of labels alone with teachers",
            digits=2,
            low=0.0,
            high=1.0,
        )
    seeds = len(next(iter(alike.values())))
    return Results(
        {"accuracy": accuracy, "teachers": teachers, "cka": alike, "cka_of_labels": of_labels},
        [
            Table(f"Test accuracy, % ({seeds} seeds, 95 %)", _rows(accuracy, teachers, other)),
            Table(
                f"Linear CKA, mean over layers ({seeds} seeds, 95 %)",
                [
                    {"student": f"{NAMES[family]}: {LABELS[method]}"}
                    | {
                        f"teacher {NAMES[x]}": shown(over_seeds(alike[f"{family}_{method}/{x}"]))
                        for x in taught
                    }
                    for family in families
                    for method in methods
                ],
            ),
        ],
        made,
    )


def _pair(family: str, other: Mapping[str, str]) -> str:
    return f"{NAMES[other[family]]} to {NAMES[family]}"


def _rows(
    accuracy: Accuracy, teachers: Mapping[str, float], other: Mapping[str, str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"student": "(the teacher)"} | {_pair(x, other): teachers[other[x]] for x in accuracy}
    ]
    for method in next(iter(accuracy.values())):
        mean = np.mean([found[method] for found in accuracy.values()], 0)
        rows.append(
            {"student": LABELS[method]}
            | {_pair(x, other): shown(over_seeds(found[method])) for x, found in accuracy.items()}
            | {"mean": shown(over_seeds(mean))}
        )
    return rows


def _gains(accuracy: Accuracy, other: Mapping[str, str], folder: Path) -> Path:
    return plots.ranking(
        folder / "plots" / "gain.png",
        {
            f"{_pair(family, other)}: {LABELS[method]}": over_seeds(np.subtract(x, found["ce"]))
            for family, found in accuracy.items()
            for method, x in found.items()
            if method != "ce"
        },
        x="test accuracy less that of labels alone, points",
        title="What a teacher of the other family brings",
    )


def _layers(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """{student's layer: {teacher's layer: CKA, a mean over seeds}} of [S, layers, layers]."""
    return {
        f"{NAMES[family]} {i + 1}": {
            f"{NAMES[x]} {j + 1}": float(value)
            for x, cells in row.items()
            for j, value in enumerate(cells.mean(0)[i])
        }
        for family, row in found.items()
        for i in range(next(iter(row.values())).shape[1])
    }
