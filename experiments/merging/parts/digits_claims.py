"""What digits_merge claims, of the values of `digits_report`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.merging.common.measuring import SCALES
from experiments.merging.common.reporting import over_seeds
from experiments.merging.parts.measures import DROPS, SHARES
from experiments.merging.parts.methods import ORACLE
from kd_jax.launch.claims import Claim, Effect, Results, above, below, within

Values = Mapping[str, Any]


def _effect(read: Callable[[Values], np.ndarray | None]) -> Callable[[Results], Effect | None]:
    def effect(results: Results) -> Effect | None:
        found = read(results.values)
        return None if found is None else over_seeds(found)

    return effect


def _method(values: Values, name: str, kind: str, count: int) -> np.ndarray:
    return np.array(values["methods"][kind][name][str(count)])


def _ahead(ours: str, theirs: str, kind: str) -> Callable[[Results], Effect | None]:
    """Of the largest number of tasks, paired seeds."""

    def read(values: Values) -> np.ndarray:
        last = values["counts"][-1]
        return _method(values, ours, kind, last) - _method(values, theirs, kind, last)

    return _effect(read)


def _growth(ours: str, theirs: str) -> Callable[[Results], Effect | None]:
    """By how much the lead with a searched scale is larger for all tasks than for two."""

    def read(values: Values) -> np.ndarray | None:
        least, most = values["counts"][0], values["counts"][-1]
        if least == most:
            return None
        leads = [
            _method(values, ours, "searched", n) - _method(values, theirs, "searched", n)
            for n in (least, most)
        ]
        return leads[1] - leads[0]

    return _effect(read)


def _step(ours: str, theirs: str) -> Callable[[Results], Effect | None]:
    def read(values: Values) -> np.ndarray:
        last = str(values["counts"][-1])
        return np.subtract(values["steps"][ours][last], values["steps"][theirs][last])

    return _effect(read)


def _conflict(values: Values) -> np.ndarray | None:
    least, most = values["counts"][0], values["counts"][-1]
    shares = values["conflicts"]["in conflict"]
    return None if least == most else np.subtract(shares[str(most)], shares[str(least)])


def _at(curve: str, place: int) -> Callable[[Values], np.ndarray]:
    return lambda values: np.array(values["curves"][curve])[:, place]


def _curves(first: tuple[str, int], second: tuple[str, int]) -> Callable[[Results], Effect | None]:
    return _effect(lambda values: _at(*first)(values) - _at(*second)(values))


_NINE = DROPS.index(0.9)
_ONE = 1 + SCALES.index(1.0)
_HALF = SHARES.index(0.5)

CLAIMS = (
    Claim(
        "With scales chosen on validation images, TIES keeps more of the specialists of all tasks "
        "than task arithmetic (normalised accuracy, in points).",
        "arXiv 2306.01708, Table 1",
        "TIES is above task arithmetic in all of the paper's settings with validation",
        _ahead("TIES", "task arithmetic", "searched"),
        above(0.0),
    ),
    Claim(
        "TIES's lead over task arithmetic grows with the number of tasks (all of them against "
        "two, scales chosen, in points).",
        "arXiv 2306.01708, figure on the number of tasks",
        "TIES degrades less as tasks are added",
        _growth("TIES", "task arithmetic"),
        above(0.0),
        "The lead is 1.3 points for two tasks, 1.9 for four, 2.0 for six; of two tasks it differs "
        "much from seed to seed.",
    ),
    Claim(
        "Without validation, at the papers' scales, TIES keeps more of the specialists of all "
        "tasks than averaging (in points).",
        "arXiv 2306.01708, Table 1",
        "ViT-B/32, 8 tasks: TIES 72.4 without validation (UNVERIFIED)",
        _ahead("TIES", "average", "unsearched"),
        above(0.0),
        "Scale 1 is too large here: with a scale searched TIES is above averaging.",
    ),
    Claim(
        "Without validation, at the papers' scales, TIES keeps more of the specialists of all "
        "tasks than task arithmetic (in points).",
        "arXiv 2306.01708, Table 1",
        "ViT-B/32, 8 tasks: TIES 72.4 without validation (UNVERIFIED)",
        _ahead("TIES", "task arithmetic", "unsearched"),
        above(0.0),
        "Both papers' scales, 1 and 0.3, are too large here; see the scales that were chosen.",
    ),
    Claim(
        "Trimming helps: TIES keeps more of all specialists than without it (scales chosen).",
        "arXiv 2306.01708, table of ablations",
        "every step left out costs accuracy (UNVERIFIED numbers)",
        _step("TIES", "no trimming"),
        above(0.0),
        "A density of 0.2 alone.",
    ),
    Claim(
        "Electing signs helps: TIES keeps more of all specialists than the mean of all trimmed "
        "entries (scales chosen).",
        "arXiv 2306.01708, table of ablations",
        "every step left out costs accuracy (UNVERIFIED numbers)",
        _step("TIES", "no election"),
        above(0.0),
        "Elected signs are far from those of a multitask model, which do help.",
    ),
    Claim(
        "The disjoint mean helps: TIES keeps more of all specialists than a mean that counts the "
        "models without an entry (scales chosen).",
        "arXiv 2306.01708, table of ablations",
        "every step left out costs accuracy (UNVERIFIED numbers)",
        _step("TIES", "mean over all"),
        above(0.0),
    ),
    Claim(
        "The signs of a multitask model are better than elected ones (scales chosen).",
        "arXiv 2306.01708, section on oracle signs",
        "with oracle signs TIES comes near multitask training",
        _step(ORACLE, "TIES"),
        above(0.0),
    ),
    Claim(
        "The share of kept entries whose signs are in conflict grows with the number of models "
        "(all tasks against two, in points).",
        "arXiv 2306.01708, figure on sign conflicts",
        "grows with the number of models",
        _effect(_conflict),
        above(0.0),
    ),
    Claim(
        "The best scale of the sum of all task vectors is below 1 (chosen on validation images).",
        "arXiv 2212.04089, section on addition",
        "0.3 for eight vision tasks",
        _effect(lambda v: np.array(v["scales"]["task arithmetic"][str(v["counts"][-1])])),
        below(1.0),
    ),
    Claim(
        "Subtracting a task's vector costs that task more accuracy than the others (in points).",
        "arXiv 2212.04089, section on negation",
        "ViT-L/14: the target task falls by 45.8 points, the control task by 2.5 (UNVERIFIED)",
        _effect(lambda v: np.subtract(v["negation"]["own"], v["negation"]["others"])),
        above(0.0),
    ),
    Claim(
        "Nine tenths of a specialist's task vector can be dropped at random, the rest rescaled, "
        "with less than 5 points of its accuracy lost.",
        "arXiv 2311.03099, abstract",
        "90 % to 99 % of the entries with almost no loss (UNVERIFIED numbers)",
        _curves(("rescaled", _NINE), ("rescaled", 0)),
        above(-5.0),
        "Up to 0.8 less than 5 points are lost. Other rates of fine-tuning were not tried.",
    ),
    Claim(
        "With nine tenths dropped, rescaling the rest keeps more of the specialist than not.",
        "arXiv 2311.03099, figure on rescaling",
        "without rescaling accuracy falls with the share dropped",
        _curves(("rescaled", _NINE), ("not rescaled", _NINE)),
        above(0.0),
    ),
    Claim(
        "At the same density, keeping large entries more often (DELLA) keeps more of all "
        "specialists than DARE (both by TIES's election, scales chosen, in points).",
        "arXiv 2406.11617, abstract",
        "better on average than DARE and TIES (UNVERIFIED numbers)",
        _ahead("DELLA", "DARE, TIES", "searched"),
        above(0.0),
    ),
    Claim(
        "Breadcrumbs keep more of all specialists than task arithmetic (scales chosen).",
        "arXiv 2312.06795, figure on the number of tasks",
        "better than task arithmetic at eight tasks (UNVERIFIED numbers)",
        _ahead("breadcrumbs", "task arithmetic", "searched"),
        above(0.0),
        "Other shares to keep and to remove: see breadcrumbs_scaling.",
    ),
    Claim(
        "Half-way between two specialists a sphere and a straight line are the same within one "
        "point: the angle between their weights is small.",
        "common practice",
        "no figure",
        _curves(("SLERP", _HALF), ("linear", _HALF)),
        within(-1.0, 1.0),
    ),
)
