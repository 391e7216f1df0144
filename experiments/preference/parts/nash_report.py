"""Claims, tables and plots of the games: gaps along the rounds, over games."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.effects import over_seeds, shown

SOURCE = "arXiv 2407.00617"


def _value(name: str) -> Callable[[Results], Effect]:
    return lambda results: Effect(*results.values[name])


_THREE = "Three seeds, whose games differ; all agree in sign. More seeds were not run."

CLAIMS = (
    Claim(
        "Exact mirror descent ends at the Nash policy (duality gap at the end, below 0.001).",
        f"{SOURCE}, section 3",
        "the last iterate converges",
        _value("omd_end"),
        below(1e-3),
    ),
    Claim(
        "INPO on sampled pairs ends with less than a tenth of the duality gap it starts with "
        "(ratio, below 0.1).",
        f"{SOURCE}, section 3",
        "its loss has the step of mirror descent as its minimiser",
        _value("inpo_ratio"),
        below(0.1),
    ),
    Claim(
        "Best responses to the last policy do not get there (their mean gap over the last quarter "
        "of the rounds, less INPO's; above 0.1).",
        f"{SOURCE}, section 1",
        "no figure: intransitive preferences",
        _value("greedy_excess"),
        above(0.1),
    ),
    Claim(
        "Nor does iterative DPO with the first reference (likewise, above 0.1).",
        f"{SOURCE}, section 1 and table 1",
        "iterative DPO 28.5 points, INPO 42.6 (AlpacaEval 2)",
        _value("dpo_excess"),
        above(0.1),
    ),
    Claim(
        "Iterative DPO whose reference is the last iterate ends on one action (probability of the "
        "likeliest, above 0.9).",
        f"{SOURCE}, section 1",
        "no figure",
        _value("dpo_restarted_likeliest"),
        above(0.9),
    ),
    Claim(
        "With the step eta_t = tau (t + 2) / 2 of the theorem, KL(Nash || policy) of exact mirror "
        "descent falls at least as 1 / t (t KL at the end over t KL at a quarter, below 1).",
        f"{SOURCE}, section 3",
        "O(1 / T)",
        _value("rate"),
        below(1.0),
    ),
    Claim(
        "On sampled pairs that step ends nearer than a constant one (difference of the gaps, "
        "constant less growing, above 0).",
        f"{SOURCE}, section 3 (not claimed there)",
        "no figure",
        _value("growing_gain"),
        above(0.0),
    ),
    Claim(
        "A language model that learns of its own completions by INPO ends with less than half the "
        "duality gap it starts with (ratio, below 0.5).",
        f"{SOURCE}, section 4",
        "no figure: benchmarks of chat models",
        _value("written_ratio"),
        below(0.5),
        _THREE,
    ),
    Claim(
        "And with less than by iterative DPO (difference, above 0).",
        f"{SOURCE}, table 1",
        "INPO 42.6, iterative DPO 28.5 (AlpacaEval 2)",
        _value("written_excess"),
        above(0.0),
        _THREE,
    ),
)

_ENDS = {"at the start": 0, "after a round": 1, "at the end": -1}
Rows = Mapping[str, np.ndarray]


def results(
    labels: Mapping[str, str],
    found: Mapping[int, Rows],
    written: Mapping[str, np.ndarray],
    folder: Path,
) -> Results:
    """found: of each number of actions "<method>/gap", "/kl" and "/likeliest" [games, rounds + 1].
    written: gaps of language models [seeds, rounds + 1], of INPO and of DPO.

    A value is over games, each the mean over numbers of actions. Gaps of INPO, of DPO and
    of best responses are at the end means over the last quarter of the rounds.
    """

    def over_sizes(name: str) -> np.ndarray:
        return np.mean([rows[name] for rows in found.values()], axis=0)

    gaps = {name: over_sizes(f"{name}/gap") for name in labels}
    rounds = gaps["omd"].shape[1] - 1
    last = slice(rounds - rounds // 4 + 1, None)
    late = {name: gap[:, last].mean(1) for name, gap in gaps.items()}
    kl, quarter = over_sizes("omd_growing/kl"), rounds // 4
    values = {
        "omd_end": gaps["omd"][:, -1],
        "inpo_ratio": late["inpo"] / gaps["inpo"][:, 0],
        "greedy_excess": late["greedy"] - late["inpo"],
        "dpo_excess": late["dpo"] - late["inpo"],
        "dpo_restarted_likeliest": over_sizes("dpo_restarted/likeliest")[:, -1],
        "rate": rounds * kl[:, -1] / (quarter * kl[:, quarter]),
        "growing_gain": late["inpo"] - late["inpo_growing"],
    }
    inpo, dpo = (gap[:, -1] for gap in written.values())
    values |= {
        "written_ratio": inpo / next(iter(written.values()))[:, 0],
        "written_excess": dpo - inpo,
    }
    at = sorted({1, 5, 20, rounds} & set(range(rounds + 1)))
    table = [
        {"actions": n, "method": label}
        | {f"round {t}": shown(over_seeds(rows[f"{name}/gap"][:, t])) for t in (0, *at)}
        for n, rows in found.items()
        for name, label in labels.items()
    ]
    drawn = {
        "gap": plots.lines(
            folder / "gap.png",
            {labels[name]: _line(gap) for name, gap in gaps.items()},
            x="round",
            y="duality gap",
            title="How much the best opponents would win",
            log_y=True,
        )
    }
    drawn["written"] = plots.lines(
        folder / "written.png",
        {label: _line(gap, 1) for label, gap in written.items()},
        x="round",
        y="duality gap",
        title="A language model that learns of its own completions",
        log_y=True,
    )
    if 3 in found:
        drawn["paths"] = plots.trade_off(
            folder / "paths.png",
            {
                labels[name]: plots.Line(*found[3][f"{name}/policy"][:, :2].T.tolist())
                for name in ("omd", "inpo", "greedy", "dpo")
            },
            x="probability of rock",
            y="probability of paper",
            title="One game of three actions",
        )
    return Results(
        {name: list(over_seeds(x)) for name, x in values.items()},
        (Table("Duality gap by round", table), _written(written)),
        drawn,
    )


def _written(written: Mapping[str, np.ndarray]) -> Table:
    rows = [
        {"method": label} | {name: shown(over_seeds(gap[:, at])) for name, at in _ENDS.items()}
        for label, gap in written.items()
    ]
    return Table("Duality gap of language models", rows)


def _line(gap: np.ndarray, every: int = 2) -> plots.Line:
    """The mean over games; an interval around something that falls to 0 has no logarithm."""
    at = range(0, gap.shape[1], every)
    return plots.Line(at, np.maximum(gap.mean(0), 1e-5)[at].tolist())
