"""Tables, plots and claims of tgeo_fusion."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.distillation.common import endings
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds, shown

FUSED = {"joint": "fusion, student's own loss", "learned": "fusion, two levels"}
LABELS = {"correct": "1 where the teacher is right"} | FUSED
_TRIED = (
    "On one seed of others: rates of the fusion network from 0.001 to 0.03, batches of 64 to 256, "
    "students of 300 to 2,000 images. Where wrong labels are scattered, the loss on other images "
    "after one step hardly tells them from right ones in any of these, as learning them by heart "
    "does little harm elsewhere; where they are whole classes, it does. More steps of the student "
    "to look through were not tried."
)

WORLDS = {"scattered": "wrong on images", "gathered": "wrong on classes"}
BINS = 10


def name(alpha: float) -> str:
    """Of the stage of a fixed alpha."""
    return f"fixed_{f'{alpha:g}'.replace('.', '_')}"


def results(
    worlds: Sequence[str],
    alphas: Sequence[float],
    methods: Sequence[str],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    """values[world]: "accuracy" and "validation", {arm: [S], %}; "best", the fixed alpha's arm that
    is best on validation images; of fusion networks "auc" of alpha as a sign that the teacher is
    right, and its means where it is "right" and "wrong", {arm: [S]}."""
    labels = {name(a): f"alpha {a:g}" for a in alphas} | {m: LABELS[m] for m in methods}
    values, made = {}, {}
    for world in worlds:
        own = {arm: artefacts[f"{world}_{arm}"] for arm in labels}
        right = np.asarray(artefacts[f"{world}_said"].rows["right"], bool)
        shares = {arm: _shares(own[arm]) for arm in FUSED if arm in own}
        values[world] = _values(own, list(map(name, alphas)), shares, right)
        effects = {arm: over_seeds(x) for arm, x in values[world]["accuracy"].items()}
        path = folder / "plots" / f"{world}_accuracy.png"
        made[f"{world}_accuracy"] = _along(alphas, effects, WORLDS[world], path)
        if "learned" in shares:
            path = folder / "plots" / f"{world}_alphas.png"
            title = f"Learned alphas: {WORLDS[world]}"
            made[f"{world}_alphas"] = _histogram(shares["learned"], right, title, path)
    return Results(values, [_accuracies(values, labels), _told_apart(values)], made)


def _values(
    own: Mapping[str, Artefact],
    fixed: Sequence[str],
    shares: Mapping[str, np.ndarray],
    right: np.ndarray,
) -> dict[str, Any]:
    accuracy, validation = (
        {arm: endings.ending(x, split=split).accuracy.tolist() for arm, x in own.items()}
        for split in ("test", "validation")
    )

    def over(of: Callable[[np.ndarray, np.ndarray], float]) -> dict[str, list[float]]:
        return {
            arm: [of(x, r) for x, r in zip(found, right, strict=True)]
            for arm, found in shares.items()
        }

    return {
        "accuracy": accuracy,
        "validation": validation,
        "best": max(fixed, key=lambda arm: np.mean(validation[arm])),
        "auc": over(auc),
        "right": over(lambda x, r: float(x[r].mean())),
        "wrong": over(lambda x, r: float(x[~r].mean())),
        "wrong_images": (100 * (1 - right.mean(1))).tolist(),
    }


def _accuracies(values: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    seeds = len(next(iter(values.values()))["wrong_images"])
    rows = [
        {"alpha": label}
        | {
            f"{WORLDS[world]}, {split}": shown(over_seeds(found[key][arm]))
            for world, found in values.items()
            for key, split in (("accuracy", "test"), ("validation", "validation"))
        }
        for arm, label in labels.items()
    ]
    return Table(f"Accuracy of students, % (95 % over {seeds} seeds)", rows)


def _told_apart(values: Mapping[str, Any]) -> Table:
    rows = [
        {
            "teacher": WORLDS[world],
            "images it is wrong on, %": shown(over_seeds(found["wrong_images"])),
            "network": FUSED[arm],
            "AUC": shown(over_seeds(found["auc"][arm])),
            "mean alpha, right": shown(over_seeds(found["right"][arm])),
            "mean alpha, wrong": shown(over_seeds(found["wrong"][arm])),
        }
        for world, found in values.items()
        for arm in found["auc"]
    ]
    return Table(
        "What a fusion network makes of images that the teacher is right or wrong on", rows
    )


def auc(values: np.ndarray, right: np.ndarray) -> float:
    """The chance that a right one has the larger value, ties counting half; nan for one kind."""
    ranks, count = stats.rankdata(values), int(right.sum())
    if count in (0, len(right)):
        return float("nan")
    above_least = ranks[right].sum() - count * (count + 1) / 2
    return float(above_least / (count * (len(right) - count)))


def _shares(artefact: Artefact) -> np.ndarray:
    return np.asarray(artefact.rows[f"{artefact.values['steps']}/fusion/share"])


def _along(alphas: Sequence[float], effects: Mapping[str, Effect], world: str, path: Path) -> Path:
    """Fixed alphas as a line, the others as levels."""
    ordered = sorted(alphas)
    series = {"fixed": _line(ordered, [effects[name(a)] for a in ordered])}
    for arm in [arm for arm in LABELS if arm in effects]:
        series[LABELS[arm]] = plots.Line((0.0, 1.0), [effects[arm].estimate] * 2)
    return plots.lines(
        path, series, x="alpha, weight of the teacher", y="test accuracy, %",
        title=f"Students by how their teacher is weighed: {world}",
    )  # fmt: skip


def _line(x: Sequence[float], effects: Sequence[Effect]) -> plots.Line:
    return plots.Line(x, *([e[i] for e in effects] for i in range(3)))


def _histogram(shares: np.ndarray, right: np.ndarray, title: str, path: Path) -> Path:
    """Over the images of all seeds."""
    edges = np.linspace(0, 1, BINS + 1)
    kinds = {"teacher right": shares[right], "teacher wrong": shares[~right]}
    counts = {kind: np.histogram(x, edges)[0] / max(len(x), 1) for kind, x in kinds.items()}
    groups = {
        f"{edge:.1f}": {kind: float(x[i]) for kind, x in counts.items()}
        for i, edge in enumerate(edges[:-1])
    }
    return plots.bars(path, groups, x="alpha, from", y="share of those images", title=title)


def _told(world: str) -> Callable[[Results], Effect | None]:
    def effect(found: Results) -> Effect | None:
        areas = found.values.get(world, {}).get("auc", {})
        return over_seeds(areas["learned"]) if "learned" in areas else None

    return effect


def _ahead(world: str) -> Callable[[Results], Effect | None]:
    """By how much learned alphas do better than the best fixed one."""

    def effect(found: Results) -> Effect | None:
        own = found.values.get(world, {"accuracy": {}})
        accuracy = own["accuracy"]
        if "learned" not in accuracy:
            return None
        return over_seeds(np.subtract(accuracy["learned"], accuracy[own["best"]]))

    return effect


def _by_two_levels(found: Results) -> Effect | None:
    """By how much it does better than on the student's own loss, mean over worlds."""
    cells = [own["accuracy"] for own in found.values.values()]
    if not all({"joint", "learned"} <= x.keys() for x in cells):
        return None
    return over_seeds(np.mean([np.subtract(x["learned"], x["joint"]) for x in cells], 0))


CLAIMS = (
    Claim(
        "alpha tells whether the teacher is right, where it is wrong on scattered images: the AUC "
        "over a student's images (above 0.8).",
        "arXiv 2312.15112, abstract (sample-wise fusion)",
        "qualitative, other data",
        _told("scattered"),
        above(0.8),
        _TRIED,
    ),
    Claim(
        "alpha tells whether the teacher is right, where it is wrong on whole classes (AUC, above "
        "0.8).",
        "arXiv 2312.15112, abstract (sample-wise fusion)",
        "qualitative, other data",
        _told("gathered"),
        above(0.8),
        _TRIED,
    ),
    Claim(
        "Where the teacher is wrong on scattered images, a student with learned alphas does better "
        "than one with the best fixed alpha, chosen on validation images (difference of test "
        "accuracies, points, above 0).",
        "arXiv 2312.15112, abstract (tables UNVERIFIED)",
        "better than fixed weights on CIFAR-100 and others",
        _ahead("scattered"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "The same, where the teacher is wrong on whole classes.",
        "arXiv 2312.15112, abstract (tables UNVERIFIED)",
        "better than fixed weights on CIFAR-100 and others",
        _ahead("gathered"),
        above(0.0),
    ),
    Claim(
        "It takes two levels: on the student's own loss the network learns to choose the smaller "
        "term, and the student does worse (difference of test accuracies, points, mean over where "
        "teachers are wrong, above 0).",
        "arXiv 2312.15112, section 3 (bilevel optimisation)",
        "qualitative",
        _by_two_levels,
        above(0.0),
        _TRIED,
    ),
)
