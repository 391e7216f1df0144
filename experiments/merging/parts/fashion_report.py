"""What fashion_merge says: claims, tables, plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merging.common.reporting import difference, over_seeds, row, task_means
from experiments.merging.parts.methods import METHODS
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Results, Table, above

SOUPS = (
    "pretrained",
    "best single",
    "uniform soup",
    "greedy soup",
    "one of two",
    "mean of two",
    "model stock",
    "one of other starts",
    "mean of other starts",
)
KINDS = ("clean", "noisy")
SEARCHED = tuple(name for name, method in METHODS.items() if method.searched)
UNSEARCHED = ("pretrained", "greedy soup", *METHODS)


def _soup(statement: str, source: str, paper: str, ours: str, theirs: str, kind: str, least: float):
    apart = difference(("soups", kind, ours), ("soups", kind, theirs))
    return Claim(statement, source, paper, apart, above(least), _SOUPS_TRIED)


_SOUPS_TRIED = (
    "The best of the sweep, its soups and its means are within half a point of one another. Of one "
    "seed from 0, on which the sizes were chosen, the uniform soup was 0.9 points above the best "
    "single one. Larger models, longer sweeps and other noise were not tried."
)
_MERGES_TRIED = (
    "The scales that are chosen are near 0.1, where all sums of task vectors are alike and hardly "
    "above the pretrained model. More pretraining and a lower rate (8000 images, 0.02) were looked "
    "at on one seed from 0, longer fine-tuning not at all."
)

CLAIMS = (
    _soup(
        "The greedy soup of a sweep has a higher test accuracy than its best member, both chosen "
        "on validation images (in points).",
        "arXiv 2203.05482, abstract",
        "higher for CLIP and ALIGN on ImageNet (UNVERIFIED numbers)",
        "greedy soup", "best single", "clean", 0.0,
    ),
    _soup(
        "Averaging two models that come from different initial weights costs more than 20 points.",
        "arXiv 2203.05482, on soups of one pretrained model",
        "no figure",
        "one of other starts", "mean of other starts", "clean", 20.0,
    ),
    _soup(
        "On noisy test images, model stock of two fine-tunings is better than their mean.",
        "arXiv 2403.19522, abstract",
        "better on shifted ImageNets (UNVERIFIED numbers)",
        "model stock", "mean of two", "noisy", 0.0,
    ),
    _soup(
        "On clean test images, model stock of two fine-tunings is better than one of them.",
        "arXiv 2403.19522, abstract",
        "better on ImageNet (UNVERIFIED numbers)",
        "model stock", "one of two", "clean", 0.0,
    ),
    _soup(
        "Model stock of two fine-tunings is at most one point below the uniform soup of eight.",
        "arXiv 2403.19522, abstract",
        "as good as soups of many models (UNVERIFIED numbers)",
        "model stock", "uniform soup", "clean", -1.0,
    ),
    Claim(
        "With scales chosen on validation images, TIES keeps more of the specialists than task "
        "arithmetic (normalised accuracy, in points).",
        "arXiv 2306.01708, Table 1",
        "TIES is above task arithmetic in all of the paper's settings with validation",
        difference(("searched", "TIES"), ("searched", "task arithmetic")),
        above(0.0),
        _MERGES_TRIED,
    ),
    Claim(
        "With a scale chosen on validation images, TIES keeps more of the specialists than "
        "averaging (normalised accuracy, in points).",
        "arXiv 2306.01708, Table 1",
        "TIES is above averaging in all of the paper's settings",
        difference(("searched", "TIES"), ("unsearched", "average")),
        above(0.0),
    ),
)  # fmt: skip


def results(
    names: Sequence[str],
    orders: Mapping[int, Sequence[str]],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    """orders: the tasks of each seed, in the order in which it merges them."""
    count = len(names)

    def of(stage: str, key: str) -> list[float]:
        return [artefacts[f"{stage}_{seed}"].values[key] for seed in orders]

    values = {
        "soups": {kind: {name: of("soups", f"{name}/{kind}") for name in SOUPS} for kind in KINDS},
        "included": of("soups", "included"),
        "unsearched": {name: of("merged", f"{name}/{count}/unsearched") for name in UNSEARCHED},
        "searched": {name: of("merged", f"{name}/{count}/searched") for name in SEARCHED},
        "scales": {name: of("merged", f"{name}/{count}/scale") for name in SEARCHED},
    }
    soups = [row(name, {kind: values["soups"][kind][name] for kind in KINDS}) for name in SOUPS]
    merges = [
        row(
            name,
            {
                column: values[kind][name]
                for column, kind in (
                    ("the paper's scale", "unsearched"),
                    ("scale searched", "searched"),
                    ("scale", "scales"),
                )
                if name in values[kind]
            },
        )
        for name in UNSEARCHED
    ]
    tables = [
        Table("One task: test accuracy (%)", soups),
        Table(
            "Models in the greedy soup, of eight", [row("greedy soup", {"": values["included"]})]
        ),
        Table(f"{count} tasks merged: normalised accuracy (%)", merges),
    ]
    models = ("specialist", *UNSEARCHED, *(f"{name}, searched" for name in SEARCHED))
    heat = task_means(dict.fromkeys(models, "merged"), names, orders, artefacts)
    where, seeds = folder / "plots", f"{len(orders)} seeds (95 %)"
    ranked = {f"{name}, searched": over_seeds(values["searched"][name]) for name in SEARCHED}
    ranked |= {name: over_seeds(values["unsearched"][name]) for name in ("average", "model stock")}
    drawn = {
        "soups": plots.bars(
            where / "soups.png",
            # The pretrained model stands in the table.
            {k: {n: over_seeds(values["soups"][k][n]) for n in SOUPS[1:]} for k in KINDS},
            y="test accuracy (%)",
            title=f"Fine-tunings for one task, averaged, {seeds}",
        ),
        "merges": plots.ranking(
            where / "merges.png",
            ranked,
            x="normalised accuracy (%)",
            title=f"{count} specialists merged, {seeds}",
            reference=("pretrained", float(np.mean(values["unsearched"]["pretrained"]))),
        ),
        "tasks": plots.heatmap(
            where / "tasks.png",
            heat,
            x="test images of",
            title=f"Test accuracy (%), {count} specialists merged",
        ),
    }
    return Results(values, tables, drawn)
