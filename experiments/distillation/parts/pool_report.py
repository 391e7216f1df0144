"""Claims, tables and plots of any_pair_transfer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import endings
from experiments.distillation.parts import pool
from experiments.distillation.parts.pool import ARMS, MEMBERS, SIZES, ArmName, Name
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, within
from kd_jax.launch.effects import over_seeds, shown

EDGES = (-5.0, -1.5, 1.5, 5.0)  # points of accuracy, between bins of teachers


def gained(results: Results, arm: ArmName) -> np.ndarray:
    """What students gain, points [pools, pairs]."""
    return np.array(results.values["gained"][arm])


def success(results: Results, arm: ArmName) -> np.ndarray:
    """The share of pairs whose student gains anything, % [pools]."""
    return 100 * (gained(results, arm) > 0).mean(1)


def from_weaker(results: Results, arm: ArmName) -> np.ndarray:
    """What students gain from teachers less accurate than they were, points [pools]."""
    return _mean_where(gained(results, arm), np.array(results.values["gap"]) < 0)


def _mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[pools], of those pools that have any."""
    there = mask.any(1)
    return np.where(mask, values, 0.0).sum(1)[there] / mask.sum(1)[there]


def _of(
    measure: Callable[[Results, ArmName], np.ndarray], arm: ArmName, less: ArmName | None = None
) -> Callable[[Results], Effect | None]:
    """The measure of an arm, or what it has more than another; over pools."""

    def read(results: Results) -> Effect | None:
        if not {arm, less or arm} <= results.values["gained"].keys():
            return None
        values = measure(results, arm)
        values = values if less is None else values - measure(results, less)
        return over_seeds(values) if len(values) > 1 else None

    return read


def _fewest_flips(results: Results) -> Effect:
    positive = np.array(results.values["positive"])
    others = ~np.eye(positive.shape[-1], dtype=bool)
    return over_seeds(positive[:, others].min(-1))


PAPER = "arXiv 2310.17653"
_FEWEST = (
    "The fewest have two widths that learned the same images. The sizes were chosen in one run on "
    "pools from 0, where the smallest was about as large; models of another kind were not tried."
)
_FARTHER = (
    "From teachers seven points weaker students lose by either. Rate, steps and what slow weights "
    "keep were chosen once, on pools from 0; a smaller rate and more pools were not tried."
)

CLAIMS = (
    Claim(
        "Of any two models each knows what the other does not (test images that the teacher alone "
        "gets right, %: the smallest of all pairs of a pool, above 2).",
        f"{PAPER}, section 3 (by public summaries)",
        "above about 2 % for every pair; a random teacher 0.03 %",
        _fewest_flips,
        above(2.0),
        _FEWEST,
    ),
    Claim(
        "By partition a student gains from teachers weaker than itself (points of test accuracy, "
        "mean over such pairs, above 0).",
        f"{PAPER}, abstract",
        "positive gains for weak and strong teachers",
        _of(from_weaker, "dp"),
        above(0.0),
    ),
    Claim(
        "More students gain by partition than from the teacher's outputs on every image (% of "
        "pairs, difference above 0).",
        f"{PAPER}, section 5 (numbers by public summaries)",
        "success of about 92 % beside about 40 %",
        _of(success, "dp", "kl"),
        above(0.0),
    ),
    Claim(
        "More students gain by partition than from outputs and labels with slow weights "
        "(likewise).",
        f"{PAPER}, section 5 (numbers by public summaries)",
        "success of about 92 % beside about 85 %",
        _of(success, "dp", "mcl"),
        above(0.0),
        _FARTHER,
    ),
    Claim(
        "A partition without labels serves about as well as one by labels (difference of the mean "
        "gain, points, within -0.5 to 0.5).",
        f"{PAPER}, section 5",
        "about equal",
        _of(lambda results, arm: gained(results, arm).mean(1), "dp_free", "dp"),
        within(-0.5, 0.5),
    ),
)


def results(
    members: Sequence[Name],
    arms: Sequence[ArmName],
    seeds: Sequence[int],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    pools = len(seeds)
    accuracy = {name: endings.ending(artefacts[name]).accuracy for name in members}
    every = {size: pool.pairs(members, size) for size in SIZES}
    pairs = [pair for size in SIZES for pair in every[size]]
    gap = np.stack([accuracy[pair.teacher] - accuracy[pair.student] for pair in pairs], 1)
    found: dict[ArmName, np.ndarray] = {
        arm: np.concatenate(
            [_gained(artefacts[f"{arm}_{size}"], pools) for size in SIZES if every[size]], 1
        )
        for arm in arms
    }
    values = {
        "pairs": [list(pair) for pair in pairs],
        "accuracy": accuracy,
        "gap": gap,
        "gained": found,
        "positive": artefacts["flips"].rows["positive"],
    }
    made = Results(values)
    tables = [
        Table(f"Students of all pairs, points of test accuracy (95 % over {pools} pools)",
              [_row(made, arm) for arm in arms]),
        Table("Before any transfer",
              [{"model": MEMBERS[name].label, "test accuracy, %": shown(over_seeds(accuracy[name]))}
               for name in members]),
    ]  # fmt: skip
    return made._replace(tables=tables, plots=_plots(made, members, arms, folder))


def _gained(artefact: Any, pools: int) -> np.ndarray:
    """[pools, pairs] of the students of one size."""
    after = endings.ending(artefact).accuracy
    return (after - artefact.rows["0/test/accuracy"]).reshape(pools, -1)


def _row(results: Results, arm: ArmName) -> dict[str, Any]:
    gain, gap = gained(results, arm), np.array(results.values["gap"])
    return {
        "transfer": ARMS[arm].label,
        "pairs that gain, %": shown(over_seeds(success(results, arm))),
        "gain": shown(over_seeds(gain.mean(1))),
        "from weaker teachers": shown(over_seeds(_mean_where(gain, gap < 0))),
        "from stronger teachers": shown(over_seeds(_mean_where(gain, gap > 0))),
    }


def _plots(
    results: Results, members: Sequence[Name], arms: Sequence[ArmName], folder: Path
) -> dict[str, Path]:
    gap = np.array(results.values["gap"])
    edges = (-np.inf, *EDGES, np.inf)
    masks = [(gap >= low) & (gap < high) for low, high in zip(edges, edges[1:], strict=False)]
    masks = [mask for mask in masks if mask.any()]
    at = [float(gap[mask].mean()) for mask in masks]
    series = {}
    for arm in arms:
        effects = [over_seeds(_mean_where(gained(results, arm), mask)) for mask in masks]
        series[ARMS[arm].label] = plots.Line(at, *([e[i] for e in effects] for i in range(3)))
    positive = np.array(results.values["positive"]).mean(0)
    positive[np.diag_indices(len(members))] = np.nan
    kinds = [MEMBERS[name].label for name in members]
    cells = {
        kind: dict(zip(kinds, row.tolist(), strict=True))
        for kind, row in zip(kinds, positive, strict=True)
    }
    return {
        "by_gap": plots.lines(
            folder / "plots" / "by_gap.png",
            series,
            x="the teacher's accuracy less the student's before, points",
            y="what the student gains, points",
            title="Gain by how much better the teacher is",
            reference=("no change", 0.0),
        ),
        "success": plots.ranking(
            folder / "plots" / "success.png",
            {ARMS[arm].label: over_seeds(success(results, arm)) for arm in arms},
            x="% of all pairs",
            title="Students that gain at all",
        ),
        "flips": plots.heatmap(
            folder / "plots" / "flips.png",
            cells,
            x="teacher",
            y="student",
            title="% of test images that the teacher alone gets right",
            digits=1,
        ),
    }
