"""Variants, claims, tables and plots of saliency_masks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.unlearning.common import reporting
from experiments.unlearning.parts.masks import Name
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below, within

Artefacts = Mapping[str, Any]

SALUN_RATIO = 0.5  # the paper's
LEVEL = 0.2  # of the fine-tuned model's probability: where equally much is forgotten
_PARTS = ("forget", "retain")
LABELS = {
    "random": "random",
    "magnitude": "magnitude",
    "saliency": "saliency",
    "wagle": "WAGLE",
}


class Variant(NamedTuple):
    """label: in plots. score: which weights may move, None for all of them. ratio: how many.
    labels: random labels instead of gradient difference."""

    label: str
    score: Name | None = None
    ratio: float = 1.0
    labels: bool = False


def variants(scores: Sequence[Name], ratios: Sequence[float], labels: bool) -> dict[str, Variant]:
    """Names of stages and what they are; without `labels` those of random labels are left out."""
    found = {"dense": Variant("all weights")}
    for score in scores:
        for ratio in ratios:
            label = f"{LABELS[score]} {ratio:.0%}"
            found[f"{score}_{round(100 * ratio)}"] = Variant(label, score, ratio)
    if labels:
        found["labels"] = Variant("random labels", labels=True)
        found["salun"] = Variant("SalUn", "saliency", SALUN_RATIO, labels=True)
    return found


def _effect(name: str):
    def read(results: Results) -> Effect | None:
        found = results.values["effects"].get(name)
        return None if found is None else Effect(**found)

    return read


def _keeps_more(than: str) -> str:
    return (
        "Where GradDiff has brought the probability of answers to forget to a fifth, it has kept "
        f"more of the others' with WAGLE's weights than with {than} (difference)."
    )


# What was tried, shown beside a claim that does not hold.
_WAGLE = (
    "Shares of 5, 20 and 80 % (the claims are judged at 80 %; the paper has 80 to 95 % on TOFU), "
    "two learning rates and two numbers of epochs on other seeds, full training of a small model "
    "from scratch instead of a pretrained one. Masks of the largest gradients, WAGLE's among them, "
    "let the weights move that the answers to keep need too; at 80 % they are as no mask."
)
_SALUN = (
    "Random labels are answers drawn from the right one and five wrong ones: after 24 epochs at "
    "one learning rate neither has forgotten much. A longer training was not tried."
)

CLAIMS = (
    Claim(
        _keeps_more("all weights"),
        "arXiv 2410.17509 (tables UNVERIFIED)",
        "better unlearning at equal or better utility than dense GradDiff, NPO and PO",
        _effect("wagle_minus_dense"),
        above(0.0),
        _WAGLE,
    ),
    Claim(
        _keeps_more("as many random ones"),
        "arXiv 2410.17509 (tables UNVERIFIED)",
        "better unlearning at equal or better utility than random masks",
        _effect("wagle_minus_random"),
        above(0.0),
        _WAGLE,
    ),
    Claim(
        _keeps_more("as many of the largest"),
        "arXiv 2410.17509 (tables UNVERIFIED)",
        "better unlearning at equal or better utility than magnitude masks",
        _effect("wagle_minus_magnitude"),
        above(0.0),
        _WAGLE,
    ),
    Claim(
        "SalUn ends nearer to the retrained model than random labels on all weights (mean gap of "
        "the two probabilities, difference).",
        "arXiv 2310.12508 (tables UNVERIFIED)",
        "image classifiers: the smallest average gap to retraining",
        _effect("salun_minus_labels_gap"),
        below(0.0),
        _SALUN,
    ),
    Claim(
        "No weight outside a mask moves by a bit (the number of those that do, over all runs).",
        "arXiv 2310.12508: theta = m * theta + (1 - m) * theta_o",
        "0 by construction",
        _effect("moved_outside"),
        within(0.0, 0.0),
    ),
)


def retain_at(line: tuple[Sequence[float], Sequence[float]], level: float) -> float:
    """The second measure where the first, along a training, first falls to `level`.

    Interpolated between two measurements; NaN where it never does.
    """
    forget, retain = (np.asarray(x, np.float64) for x in line)
    below = np.flatnonzero(forget <= level)
    if not below.size:
        return math.nan
    i = int(below[0])
    if i == 0:
        return float(retain[0])
    share = (forget[i - 1] - level) / (forget[i - 1] - forget[i])
    return float(retain[i - 1] + share * (retain[i] - retain[i - 1]))


def results(
    made: Mapping[str, Variant], seeds: Iterable[int], artefacts: Artefacts, folder: Path
) -> Results:
    seeds = tuple(seeds)
    kept = {name: [_kept(artefacts, name, seed) for seed in seeds] for name in made}
    gaps = {name: [_gap(artefacts, name, seed) for seed in seeds] for name in made}
    moved = {
        name: sum(artefacts[f"{name}_{seed}_score"].values["moved_outside"] for seed in seeds)
        for name, variant in made.items()
        if variant.score
    }
    values = {
        "kept_at_equal_forgetting": kept,
        "gap_to_retrained": gaps,
        "moved_outside": moved,
        "effects": {k: e._asdict() for k, e in _effects(made, kept, gaps, moved).items()},
    }
    tables = [
        _masks(made, seeds, artefacts, kept, gaps),
        reporting.table(
            artefacts,
            {"finetune": "fine-tuned", "retrain": "retrained"}
            | {name: variant.label for name, variant in made.items()},
            seeds,
            "After training: all figures (95 % over seeds)",
        ),
    ]
    return Results(values, tables, _plots(made, seeds, artefacts, kept, folder))


def _kept(artefacts: Artefacts, name: str, seed: int) -> float:
    stage = artefacts[f"{name}_{seed}"]
    forget, retain = (stage.series(f"answers/{part}_probability")[1] for part in _PARTS)
    return retain_at((forget, retain), LEVEL * forget[0])


def _gap(artefacts: Artefacts, name: str, seed: int) -> float:
    """The mean distance of the probabilities to forget and to keep from the retrained model's."""
    found, gold = (artefacts[f"{x}_{seed}_score"].values for x in (name, "retrain"))
    keys = [f"{part}_probability" for part in _PARTS]
    return float(np.mean([abs(found[key] - gold[key]) for key in keys]))


def _effects(
    made: Mapping[str, Variant],
    kept: Mapping[str, Sequence[float]],
    gaps: Mapping[str, Sequence[float]],
    moved: Mapping[str, int],
) -> dict[str, Effect]:
    """Differences by pairs of seeds, at the largest ratio; of one seed there are none to judge."""
    total = float(sum(moved.values()))
    found = {"moved_outside": Effect(total, total, total)}
    if len(kept["dense"]) == 1:
        return found
    ratio = max((v.ratio for v in made.values() if v.score and not v.labels), default=0.0)
    others = {name: f"{name}_{round(100 * ratio)}" for name in ("random", "magnitude")}
    wagle = f"wagle_{round(100 * ratio)}"
    for name, stage in ({"dense": "dense"} | others).items():
        if {wagle, stage} <= made.keys():
            found[f"wagle_minus_{name}"] = _difference(kept[wagle], kept[stage])
    if "salun" in made:
        found["salun_minus_labels_gap"] = _difference(gaps["salun"], gaps["labels"])
    return found


def _difference(first: Sequence[float], second: Sequence[float]) -> Effect:
    return reporting.over_seeds([a - b for a, b in zip(first, second, strict=True)])


def _masks(
    made: Mapping[str, Variant],
    seeds: Sequence[int],
    artefacts: Artefacts,
    kept: Mapping[str, Sequence[float]],
    gaps: Mapping[str, Sequence[float]],
) -> Table:
    rows = []
    for name, variant in made.items():
        found = reporting.scores(artefacts, name, seeds)
        row: dict[str, Any] = {"weights": variant.label, "share that may move": variant.ratio}
        for part in _PARTS:
            values = [s.values[f"{part}_probability"] for s in found]
            row[f"{part} probability"] = reporting.over_seeds(values)
        # Some never forget so much.
        reached = not np.isnan(kept[name]).any()
        row["retain probability at equal forgetting"] = (
            reporting.over_seeds(kept[name]) if reached else None
        )
        row["gap to retrained"] = reporting.over_seeds(gaps[name])
        if variant.score:
            row["weights moved"] = int(np.mean([s.values["moved_inside"] for s in found]))
            row["moved outside the mask"] = sum(s.values["moved_outside"] for s in found)
        rows.append(row)
    return Table("Masks (95 % over seeds)", rows)


def _plots(
    made: Mapping[str, Variant],
    seeds: Sequence[int],
    artefacts: Artefacts,
    kept: Mapping[str, Sequence[float]],
    folder: Path,
) -> dict[str, Path]:
    groups: dict[str, dict[str, Effect]] = {}
    for name, variant in made.items():
        if variant.score and not variant.labels:
            group = groups.setdefault(f"{variant.ratio:.0%} of the weights", {})
            group[LABELS[variant.score]] = reporting.over_seeds(kept[name])
    dense = float(np.mean(kept["dense"]))
    bars = plots.bars(
        folder / "plots" / "kept_at_equal_forgetting.png",
        groups,
        y="probability of answers to keep",
        title="Kept where the answers to forget have fallen to a fifth",
        reference=("all weights", dense),
    )
    found = {"kept_at_equal_forgetting": bars}
    for ratio in sorted({v.ratio for v in made.values() if v.score and not v.labels}):
        chosen = {
            name: variant.label
            for name, variant in made.items()
            if not variant.labels and variant.ratio in (ratio, 1.0)
        }
        found |= reporting.training_plots(
            artefacts, chosen, seeds, folder, suffix=f"_{round(100 * ratio)}"
        )
    return found
