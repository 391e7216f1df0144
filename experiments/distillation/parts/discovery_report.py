"""Claims, table and plots of class_discovery."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds, shown

ArmName = Literal["alone", "uniform", "learnt"]
ARMS: dict[ArmName, str] = {
    "alone": "swapped prediction alone",
    "uniform": "relations kept",
    "learnt": "relations kept, learnt weight",
}
MEASURES = {
    "clustering": "accuracy of clusters, %",
    "all": "accuracy among all classes, %",
    "divergence": "KL(old || new) over known classes, nats",
    "mass": "mass of known classes",
}


def _more(measure: str, arm: ArmName, less: ArmName) -> Callable[[Results], Effect | None]:
    """By how much an arm ends above another; paired seeds."""

    def read(results: Results) -> Effect | None:
        ends = results.values["ends"]
        if not {arm, less} <= ends.keys() or len(ends[arm][measure]) < 2:
            return None
        return over_seeds(np.subtract(ends[arm][measure], ends[less][measure]))

    return read


PAPER = "arXiv 2307.09158"
_TRIED = (
    "On seeds from 0 wider layers, four heads and half the rate gave the same order: the even term "
    "changes little, the learnt weight costs clusters. Convolutions, small views, other splits of "
    "the classes and other alpha were not tried."
)

CLAIMS = (
    Claim(
        "Without the term the new model's distribution over known classes moves away from the old "
        "one's on new images (KL, nats: more than with the term and its weight, above 0).",
        f"{PAPER}, abstract and introduction",
        "class relations decay during discovery",
        _more("divergence", "alone", "learnt"),
        above(0.0),
    ),
    Claim(
        "Keeping relations, with the learnt weight, finds new classes better than swapped "
        "prediction alone (accuracy of clusters, points, above 0).",
        f"{PAPER}, abstract (numbers UNVERIFIED)",
        "large gains over a baseline in the manner of UNO: CIFAR-100, CUB, Cars, Aircraft",
        _more("clustering", "learnt", "alone"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "So it does among all classes (accuracy, points, above 0).",
        f"{PAPER}, abstract (numbers UNVERIFIED)",
        "gains on known and new classes together",
        _more("all", "learnt", "alone"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "The learnt weight serves no worse than an even one (accuracy of clusters, points, above "
        "-1).",
        f"{PAPER}, ablation of the weight (numbers UNVERIFIED)",
        "the learnt weight better",
        _more("clustering", "learnt", "uniform"),
        above(-1.0),
        _TRIED,
    ),
)


def results(
    arms: Sequence[ArmName], seeds: Sequence[int], artefacts: Mapping[str, Any], folder: Path
) -> Results:
    curves = {arm: _curves(artefacts[arm]) for arm in arms}
    ends = {arm: {name: curve[name][-1].tolist() for name in MEASURES}
            for arm, curve in curves.items()}  # fmt: skip
    rows = [
        {"discovery": ARMS[arm]} | {MEASURES[name]: shown(over_seeds(ends[arm][name]))
                                    for name in MEASURES}
        for arm in arms
    ]  # fmt: skip
    title = f"Test images after discovery (95 % over {len(seeds)} seeds)"
    made = {
        name: plots.lines(
            folder / "plots" / f"{name}.png",
            {ARMS[arm]: _line(curves[arm], name) for arm in arms},
            x="step of discovery",
            y=MEASURES[name],
            title=said,
        )
        for name, said in {
            "clustering": "New classes found",
            "divergence": "Relations of new images to known classes: less is kept better",
        }.items()
    }
    groups = {
        MEASURES[name]: {ARMS[arm]: over_seeds(ends[arm][name]) for arm in arms}
        for name in ("clustering", "all")
    }
    made["ends"] = plots.bars(
        folder / "plots" / "ends.png", groups, y="%", title="Test images after discovery"
    )
    return Results({"ends": ends}, [Table(title, rows)], made)


def _curves(artefact: Any) -> dict[str, Any]:
    """{"steps": [P], measure: [P, S]} on test images."""
    steps = sorted({int(name.split("/")[0]) for name in artefact.rows})
    return {"steps": steps} | {
        name: np.stack([artefact.rows[f"{step}/test/{name}"] for step in steps])
        for name in MEASURES
    }


def _line(curve: Mapping[str, Any], name: str) -> plots.Line:
    effects = [over_seeds(values) for values in curve[name]]
    return plots.Line(curve["steps"], *([e[i] for e in effects] for i in range(3)))
