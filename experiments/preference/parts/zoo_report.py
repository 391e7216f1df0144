"""Figures, tables and plots of the zoo."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preference.parts.zoo_methods import METHODS
from kd_jax.launch import plots
from kd_jax.launch.claims import Effect, Results, Table
from kd_jax.launch.effects import over_seeds
from kd_jax.launch.plots import Line

BUDGET = 1.0  # nats of KL to the reference, at which win rates are compared too
BARS = 21  # in a plot
# In plots of paths.
SHOWN = ("dpo", "ipo_sums", "kto", "sppo", "dpop", "rpo", "orpo", "simpo")
WITH_LIKELIHOOD = ("rpo", "cpo", "orpo")

Rows = Mapping[str, np.ndarray]


def results(
    stages: Mapping[str, tuple[int, Rows]], best: Rows, every: int, folder: Path
) -> Results:
    """stages: {method: (index of the strength, rows of its stage)}. best: rows of "worlds"."""
    measured = {name: _at_strength(i, rows) for name, (i, rows) in stages.items()}
    ends = {name: {key: x[:, -1] for key, x in path.items()} for name, path in measured.items()}
    wins = {name: over_seeds(end["win_rate"]) for name, end in ends.items()}
    effects = {key: list(over_seeds(x)) for key, x in _differences(ends, stages, measured).items()}
    worst = min(wins.values(), key=lambda e: e.estimate)
    ranked = sorted(wins, key=lambda name: -wins[name].estimate)
    return Results(
        values={
            "effects": {"worst": list(worst)} | effects,
            "ends": {name: {k: x.tolist() for k, x in end.items()} for name, end in ends.items()},
            "strengths": {name: METHODS[name].betas[i] for name, (i, _) in stages.items()},
        },
        tables=[
            Table(
                "At the end of training, by true win rate against the reference",
                [_row(name, stages[name][0], measured[name], best) for name in ranked],
            ),
            Table(
                "Every strength at the end, win rate / KL; chosen on other seeds: *",
                _strengths(stages),
            ),
        ],
        plots=_plots(measured, wins, best, every, folder),
    )


def _at_strength(i: int, rows: Rows) -> Rows:
    """{measure: [seeds, points]} on the measured seeds."""
    return {key[5:]: x[i] for key, x in rows.items() if key.startswith("test/")}


def _differences(
    ends: Mapping[str, Rows], stages: Mapping[str, tuple[int, Rows]], paths: Mapping[str, Rows]
) -> dict[str, np.ndarray]:
    """{effect: [seeds]}, of those whose methods were run."""

    def least(names: tuple[str, ...], key: str) -> np.ndarray:
        return np.min([ends[name][key] for name in names], 0)

    def ipo_kl() -> np.ndarray:
        at = {name: METHODS[name].betas.index(0.3) for name in ("dpo", "ipo_sums")}
        dpo, ipo = (stages[name][1]["test/kl"][i, :, -1] for name, i in at.items())
        return dpo - ipo

    def dpo_fall() -> np.ndarray:
        strength, rows = stages["dpo"]
        best = rows["tuning/win_rate"][strength].mean(0).argmax()
        along = paths["dpo"]["win_rate"]
        return along[:, best] - along[:, -1]

    known: dict[str, tuple[tuple[str, ...], Callable[[], np.ndarray]]] = {
        "dpo_chosen": (("dpo",), lambda: ends["dpo"]["chosen"]),
        "likelihood_chosen": (WITH_LIKELIHOOD, lambda: least(WITH_LIKELIHOOD, "chosen")),
        "dpop_chosen": (("dpop",), lambda: ends["dpop"]["chosen"]),
        "simpo_kl": (("simpo", "dpo"), lambda: ends["simpo"]["kl"] - ends["dpo"]["kl"]),
        "simpo_wins": (
            ("simpo", "dpo"),
            lambda: ends["simpo"]["win_rate"] - ends["dpo"]["win_rate"],
        ),
        "kto_wins": (("kto", "dpo"), lambda: ends["kto"]["win_rate"] - ends["dpo"]["win_rate"]),
        "ipo_kl": (("dpo", "ipo_sums"), ipo_kl),
        "dpo_fall": (("dpo",), dpo_fall),
        "formula_chosen": (
            ("unlikelihood", "orpo_formula", "cpo_formula"),
            lambda: (
                least(("unlikelihood", "orpo_formula"), "chosen") - ends["cpo_formula"]["chosen"]
            ),
        ),
        "ccpo_wins": (
            ("ccpo", "cpo_formula", "orpo_formula"),
            lambda: (
                ends["ccpo"]["win_rate"]
                - np.max([ends[name]["win_rate"] for name in ("cpo_formula", "orpo_formula")], 0)
            ),
        ),
    }
    return {key: find() for key, (names, find) in known.items() if set(names) <= ends.keys()}


def _row(name: str, strength: int, path: Rows, best: Rows) -> dict[str, Any]:
    def end(key: str) -> Effect:
        return over_seeds(path[key][:, -1])

    at_budget = _at_budget(path)
    return {
        "loss": METHODS[name].label,
        "of": METHODS[name].kind,
        "strength": METHODS[name].betas[strength],
        "win rate": end("win_rate"),
        "KL (nats)": end("kl"),
        "best at that KL": float(_best_at(path["kl"][:, -1], best).mean()),
        f"win rate at {BUDGET:g} nat": "never there" if at_budget is None else at_budget,
        "chosen": end("chosen"),
        "rejected": end("rejected"),
        "accuracy": end("accuracy").estimate,
        "tokens": end("length").estimate,
    }


def _best_at(kl: np.ndarray, best: Rows) -> np.ndarray:
    """The best win rate of any policy at these KLs [seeds]."""
    curves = zip(kl, best["best_kl"], best["best_win_rate"], strict=True)
    return np.array([np.interp(at, *curve) for at, *curve in curves])


def _at_budget(path: Rows) -> Effect | None:
    """The win rate where the KL first reaches BUDGET, between two measurements."""
    found = []
    for kl, wins in zip(path["kl"], path["win_rate"], strict=True):
        above_it = np.flatnonzero(kl >= BUDGET)
        if not above_it.size:
            return None
        i = above_it[0]
        share = (BUDGET - kl[i - 1]) / (kl[i] - kl[i - 1])
        found.append(wins[i - 1] + share * (wins[i] - wins[i - 1]))
    return over_seeds(found)


def _strengths(stages: Mapping[str, tuple[int, Rows]]) -> list[dict[str, Any]]:
    table = []
    for name, (chosen, rows) in stages.items():
        row: dict[str, Any] = {"loss": METHODS[name].label}
        for i, beta in enumerate(METHODS[name].betas):
            wins, kl = (rows[f"test/{key}"][i, :, -1].mean() for key in ("win_rate", "kl"))
            row[f"{i + 1}"] = f"{beta:g}: {wins:.3f} / {kl:.2f}" + "*" * (i == chosen)
        table.append(row)
    return table


def _plots(
    measured: Mapping[str, Rows],
    wins: Mapping[str, Effect],
    best: Rows,
    every: int,
    folder: Path,
) -> dict[str, Path]:
    shown = [name for name in SHOWN if name in measured]
    points = next(iter(measured.values()))["kl"].shape[1]
    at = np.unique(np.linspace(0, points - 1, 18).astype(int))  # few enough to tell apart
    mean = {name: {key: x.mean(0)[at] for key, x in measured[name].items()} for name in shown}
    within = np.linspace(0.0, 1.05 * max(x["kl"].max() for x in mean.values()), 40)
    highest = [float(_best_at(np.full(len(best["best_kl"]), kl), best).mean()) for kl in within]
    paths = {METHODS[name].label: Line(x["kl"], x["win_rate"]) for name, x in mean.items()}
    found = {
        "frontier": plots.lines(
            folder / "frontier.png",
            paths | {"best possible": Line(within.tolist(), highest)},
            x="KL(policy || reference), nats",
            y="true win rate against the reference",
            title="What a nat of drift buys",
        ),
        "displacement": plots.trade_off(
            folder / "displacement.png",
            {METHODS[name].label: Line(x["rejected"], x["chosen"]) for name, x in mean.items()},
            x="change of log p(rejected), nats",
            y="change of log p(chosen), nats",
            title="Where pairs' likelihood goes",
        ),
        "chosen": plots.lines(
            folder / "chosen.png",
            {
                METHODS[name].label: Line((every * at).tolist(), x["chosen"])
                for name, x in mean.items()
            },
            x="step",
            y="change of log p(chosen), nats",
            title="Likelihood of the chosen",
        ),
    }
    ranked = sorted(wins, key=lambda name: -wins[name].estimate)
    for first in range(0, len(ranked), BARS):
        names = ranked[first : first + BARS]
        found[f"wins_from_{first + 1}"] = plots.ranking(
            folder / f"wins_from_{first + 1}.png",
            {METHODS[name].label: wins[name] for name in names},
            x="true win rate against the reference",
            title=f"The zoo, places {first + 1} to {first + len(names)}",
            reference=("reference", 0.5),
        )
    return found
