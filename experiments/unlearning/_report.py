"""Claims, tables and plots of npo_tofu."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.evaluation import tofu
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below

LABELS = {
    "finetune": "fine-tuned",
    "retrain": "retrained",
    "ga": "GA",
    "graddiff": "GradDiff",
    "npo": "NPO",
    "npo_rt": "NPO+RT",
}


def _effect(name: str):
    def read(results: Results) -> Effect:
        return Effect(**results.values["effects"][name])

    return read


CLAIMS = (
    Claim(
        "Gradient ascent destroys what should be kept: the mean probability of retained answers "
        "falls below half of the fine-tuned model's.",
        "arXiv 2404.05868, section 1 and 5.2 (catastrophic collapse)",
        "Llama-2-7B, forget05 and forget10: model utility of GA falls to 0",
        _effect("ga_retain_kept"),
        below(0.5),
    ),
    Claim(
        "NPO+RT forgets: the mean probability of forgotten answers falls below half of the "
        "fine-tuned model's.",
        "arXiv 2404.05868, section 5.2",
        "forget10: the only method with forget quality above 0.05 at high utility",
        _effect("npo_rt_forget_kept"),
        below(0.5),
    ),
    Claim(
        "NPO+RT keeps more of the retained answers' probability than GA.",
        "arXiv 2404.05868, section 5.2",
        "forget10: NPO+RT keeps a high utility where GA's is 0",
        _effect("npo_rt_minus_ga_retain"),
        above(0.0),
    ),
    Claim(
        "NPO diverges more slowly than GA: after equally many steps the loss on forgotten answers "
        "has risen more under GA than under NPO (ratio above 1).",
        "arXiv 2404.05868, section 4.2, Theorem 2",
        "linear in the number of steps for GA, logarithmic for NPO",
        _effect("ga_over_npo_forget_rise"),
        above(1.0),
    ),
)


def results(methods: Sequence[str], artefacts: Mapping[str, Artefact], folder: Path) -> Results:
    models = ("finetune", "retrain", *methods)
    scores = {name: artefacts[f"{name}_score"] for name in models}
    loss = {
        (name, part): score.rows[f"{part}_loss"].astype(np.float64)
        for name, score in scores.items()
        for part in ("forget", "retain")
    }
    values = {
        "models": {name: dict(score.values) for name, score in scores.items()},
        "trajectories": {name: artefacts[name].history for name in models},
        "forget_quality": _forget_quality(methods, scores),
        "effects": {k: e._asdict() for k, e in _effects(loss).items()},
    }
    return Results(values, [_table(models, loss, values)], _plots(models, artefacts, folder))


def _effects(loss: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Effect]:
    """95 % bootstrap intervals over questions; both sides of a ratio see the same questions."""
    p = {key: tofu.probability(x) for key, x in loss.items()}

    def ratio(columns: np.ndarray) -> float:
        return columns[:, 0].mean() / columns[:, 1].mean()

    def rises(columns: np.ndarray) -> float:
        """How much more the first column has risen above the third than the second has."""
        ga, npo, start = columns.mean(0)
        return (ga - start) / (npo - start)

    found = {
        "ga_retain_kept": (ratio, [p["ga", "retain"], p["finetune", "retain"]]),
        "npo_rt_forget_kept": (ratio, [p["npo_rt", "forget"], p["finetune", "forget"]]),
        "npo_rt_minus_ga_retain": (np.mean, [p["npo_rt", "retain"] - p["ga", "retain"]]),
        "ga_over_npo_forget_rise": (
            rises,
            [loss[name, "forget"] for name in ("ga", "npo", "finetune")],
        ),
    }
    return {
        name: Effect(*bootstrap_interval(np.stack(columns, 1), seed=0, statistic=statistic))
        for name, (statistic, columns) in found.items()
    }


def _forget_quality(methods: Sequence[str], scores: Mapping[str, Artefact]) -> dict[str, float]:
    """p of the KS test between truth ratios on the forget set: against the retrained model's."""
    if "forget_truth_ratio" not in scores["retrain"].rows:
        return {}
    retrained = scores["retrain"].rows["forget_truth_ratio"]
    return {
        name: tofu.forget_quality(scores[name].rows["forget_truth_ratio"], retrained).p_value
        for name in ("finetune", *methods)
    }


def _table(
    models: Sequence[str], loss: Mapping[Any, np.ndarray], values: Mapping[str, Any]
) -> Table:
    rows = []
    for name in models:
        row: dict[str, Any] = {"model": LABELS[name]}
        for part in ("forget", "retain"):
            chances = tofu.probability(loss[name, part])
            row[f"{part} probability"] = Effect(*bootstrap_interval(chances, seed=0))
        measured = values["models"][name]
        for part in ("forget", "retain"):
            if f"{part}_truth" in measured:
                row[f"{part} truth"] = measured[f"{part}_truth"]
        if name in values["forget_quality"]:
            row["forget quality (p)"] = values["forget_quality"][name]
        rows.append(row)
    return Table("After training: probabilities of answers (95 % over questions)", rows)


def _plots(
    models: Sequence[str], artefacts: Mapping[str, Artefact], folder: Path
) -> dict[str, Path]:
    methods = models[2:]
    made = {}
    for part, meaning in (("forget", "to forget: lower"), ("retain", "to keep: higher")):
        series = {
            LABELS[name]: plots.Line(*artefacts[name].series(f"answers/{part}_probability"))
            for name in methods
        }
        level = artefacts["retrain_score"].values[f"{part}_probability"]
        made[f"{part}_probability"] = plots.lines(
            folder / "plots" / f"{part}_probability.png",
            series,
            x="unlearning step",
            y="mean probability of the answers",
            title=f"Answers {meaning} is better",
            reference=("retrained", level),
        )
    paths = {
        LABELS[name]: plots.Line(
            artefacts[name].series("answers/forget_probability")[1],
            artefacts[name].series("answers/retain_probability")[1],
        )
        for name in methods
    }
    end = artefacts["retrain_score"].values
    paths[LABELS["retrain"]] = plots.Line([end["forget_probability"]], [end["retain_probability"]])
    made["trade_off"] = plots.trade_off(
        folder / "plots" / "trade_off.png",
        paths,
        x="probability of answers to forget",
        y="probability of answers to keep",
        title="From fine-tuned (hollow) to unlearned (large): up and left is better",
    )
    return made
