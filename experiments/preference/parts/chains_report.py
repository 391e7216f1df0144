"""Claims, tables and plots of the chains: shares of right answers, over seeds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds, shown

METHODS = {
    "base": "where all start",
    "sft": "SFT",
    "rft": "RFT",
    "dpo": "DPO",
    "per_step": "per-step DPO",
}
KINDS = {"familiar": "shortcut works", "broken": "shortcut breaks"}
SOURCE = "arXiv 2406.14532"


def _gain(first: str, second: str) -> Callable[[Results], Effect]:
    return lambda results: Effect(*results.values[f"{first}_over_{second}"])


_UNEVEN = (
    "All four seeds agree in sign; how much is gained depends on how far multiplication had been "
    "learnt before, which differs between seeds after 1000 steps. More seeds were not run."
)
_WHOLE = (
    "One pair a problem for both. On seed 0, rates of 1e-4 and 3e-4, beta of 0.1 and 0.5, and 4000 "
    "problems with 32 rollouts: DPO was ahead by 0.3 to 4.7 points each time. Pits are where they "
    "should be: on seed 0, 48 % at a multiplication that is left out, 37 % right after one. A "
    "likely reason, not tested: of five steps, the shortcut is most of what tells a wrong response "
    "from a right one."
)

CLAIMS = (
    Claim(
        "Where the shortcut breaks, per-step DPO is right more often than SFT (points, above 0).",
        f"{SOURCE}, abstract",
        "eight times the data efficiency",
        _gain("per_step", "sft"),
        above(0.0),
        _UNEVEN,
    ),
    Claim(
        "And more often than DPO on whole responses (points, above 0).",
        f"{SOURCE}, section 6 (UNVERIFIED)",
        "DPO on random pairs does not reach it",
        _gain("per_step", "dpo"),
        above(0.0),
        _WHOLE,
    ),
    Claim(
        "DPO is right there more often than RFT (points, above 0).",
        f"{SOURCE}, section 6 (UNVERIFIED)",
        "negatives help where more positives do not",
        _gain("dpo", "rft"),
        above(0.0),
    ),
    Claim(
        "RFT is right there more often than SFT (points, above 0).",
        f"{SOURCE}, abstract",
        "twice the data efficiency",
        _gain("rft", "sft"),
        above(0.0),
        _UNEVEN,
    ),
    Claim(
        "Per-step DPO takes the shortcut less often than RFT, in problems like those learnt "
        "(points, above 0).",
        f"{SOURCE}, abstract",
        "per-step negatives unlearn spurious steps",
        lambda results: Effect(*results.values["shortcuts_unlearnt"]),
        above(0.0),
    ),
)


def results(seeds: Sequence[int], found: Mapping[str, Any], folder: Path) -> Results:
    """found: of each method and seed a history of "chains/<kind>_right" and "_shortcuts"."""

    def ends(method: str, number: str) -> np.ndarray:
        """Of every seed, in percent."""
        last = [found[f"{method}_{seed}"].series(f"chains/{number}")[1][-1] for seed in seeds]
        return 100 * np.array(last)

    right = {kind: {method: ends(method, f"{kind}_right") for method in METHODS} for kind in KINDS}
    broken = right["broken"]
    lazy = {method: ends(method, "familiar_shortcuts") for method in METHODS}
    order = ("per_step", "dpo", "rft", "sft")
    values = {
        f"{first}_over_{second}": list(over_seeds(broken[first] - broken[second]))
        for i, first in enumerate(order)
        for second in order[i + 1 :]
    } | {"shortcuts_unlearnt": list(over_seeds(lazy["rft"] - lazy["per_step"]))}
    table = [
        {"method": label}
        | {f"right, {KINDS[kind]}": shown(over_seeds(right[kind][method])) for kind in KINDS}
        | {
            f"left out, {KINDS[kind]}": shown(over_seeds(ends(method, f"{kind}_shortcuts")))
            for kind in KINDS
        }
        for method, label in METHODS.items()
    ]
    pits = np.concatenate([found[f"pits_{seed}"].rows["places"] for seed in seeds])
    counts = [
        {
            "seed": seed,
            "pairs of responses": found[f"written_{seed}"].values["pairs"],
            "wrong responses": found[f"pits_{seed}"].values["wrong"],
            "with a pit": found[f"pits_{seed}"].values["pairs"],
        }
        for seed in seeds
    ]
    bars = {
        KINDS[kind]: {METHODS[m]: shown(over_seeds(x)) for m, x in right[kind].items()}
        for kind in KINDS
    }
    steps = {
        f"step {i + 1}": {"pits": float((pits == i).mean())} for i in range(int(pits.max()) + 1)
    }
    return Results(
        values,
        (
            Table("Right answers and multiplications left out, percent", table),
            Table("What is learnt of", counts),
        ),
        {
            "right": plots.bars(folder / "right.png", bars, y="right answers, percent"),
            "pits": plots.bars(
                folder / "pits.png", steps, y="share", title="Where wrong responses went wrong"
            ),
        },
    )
