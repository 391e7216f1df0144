"""What the reports of unlearning experiments share: figures with intervals, tables, plots.

Over several repetitions an interval is Student's over seeds; of one it is the bootstrap's over
questions, which does not cover the choice of the seed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.evaluation import membership, tofu
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Effect, Results, Table
from kd_jax.launch.effects import over_seeds, shown

Artefacts = Mapping[str, Artefact]

# A figure's value of each question, from the rows of a score; their mean is the figure.
QUESTIONS: dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {
    "forget_probability": lambda rows: np.exp(-rows["forget_loss"]),
    "retain_probability": lambda rows: np.exp(-rows["retain_loss"]),
    "forget_truth": lambda rows: _near_one(rows["forget_truth_ratio"]),
    "retain_truth": lambda rows: np.maximum(0.0, 1.0 - rows["retain_truth_ratio"]),
    "forget_rouge": lambda rows: rows["forget_rouge_rows"],
    "retain_rouge": lambda rows: rows["retain_rouge_rows"],
    "forget_memorisation": lambda rows: rows["forget_memorisation_rows"],
    "forget_extraction": lambda rows: rows["forget_extraction_rows"],
}


def _near_one(ratio: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.minimum(ratio, 1.0 / ratio)


def read_effect(name: str) -> Callable[[Results], Effect | None]:
    """For a claim: the effect in a report's values["effects"]; None where it was not measured."""

    def read(results: Results) -> Effect | None:
        found = results.values["effects"].get(name)
        return None if found is None else Effect(**found)

    return read


def scores(artefacts: Artefacts, name: str, seeds: Iterable[int]) -> list[Artefact]:
    """The scores of a model in each repetition."""
    return [artefacts[f"{name}_{seed}_score"] for seed in seeds]


def figure(found: Sequence[Artefact], name: str) -> Effect | None:
    """A figure of one model, with its interval; None where it was not measured."""
    if any(name not in score.values for score in found):
        return None
    if len(found) == 1 and name in QUESTIONS:
        each = QUESTIONS[name](found[0].rows).astype(np.float64)
        return Effect(*bootstrap_interval(each[np.isfinite(each)], seed=0))
    return over_seeds([float(score.values[name]) for score in found])


def difference(first: Sequence[Artefact], second: Sequence[Artefact], name: str) -> Effect:
    """The figure of the first model less that of the second: by pairs of seeds, or of questions."""
    if len(first) == 1:
        one, two = (QUESTIONS[name](score.rows).astype(np.float64) for (score,) in (first, second))
        return Effect(*bootstrap_interval(one - two, seed=0))
    pairs = zip(first, second, strict=True)
    return over_seeds([a.values[name] - b.values[name] for a, b in pairs])


def share(first: Sequence[Artefact], second: Sequence[Artefact], name: str) -> Effect:
    """The figure of the first model over that of the second."""
    if len(first) == 1:
        columns = [QUESTIONS[name](score.rows).astype(np.float64) for (score,) in (first, second)]
        return Effect(
            *bootstrap_interval(
                np.stack(columns, 1), seed=0, statistic=lambda x: x[:, 0].mean() / x[:, 1].mean()
            )
        )
    pairs = zip(first, second, strict=True)
    return over_seeds([a.values[name] / b.values[name] for a, b in pairs])


def forget_quality(found: Sequence[Artefact], retrained: Sequence[Artefact]) -> list[float]:
    """p of the KS test between truth ratios on the forget set, against the retrained model's."""
    key = "forget_truth_ratio"
    return [
        tofu.forget_quality(score.rows[key], gold.rows[key]).p_value
        for score, gold in zip(found, retrained, strict=True)
        if key in gold.rows
    ]


def privacy_leakage(found: Sequence[Artefact], retrained: Sequence[Artefact]) -> list[float]:
    """PrivLeak of the min-k attack, in percent: 0 is ideal, negative under-unlearned."""
    key = "min_k_auc"
    return [
        membership.privacy_leakage(score.values[key], gold.values[key])
        for score, gold in zip(found, retrained, strict=True)
        if key in gold.values
    ]


FIGURES = {
    "forget probability": "forget_probability",
    "retain probability": "retain_probability",
    "forget truth": "forget_truth",
    "retain truth": "retain_truth",
    "forget ROUGE-L": "forget_rouge",
    "retain ROUGE-L": "retain_rouge",
    "exact memorisation": "forget_memorisation",
    "extraction strength": "forget_extraction",
    "retain utility": "retain_utility",
    "model utility": "model_utility",
}


def table(
    artefacts: Artefacts, models: Mapping[str, str], seeds: Iterable[int], title: str
) -> Table:
    """One row a model {name: label}; "retrain" is what the others are compared with."""
    seeds = tuple(seeds)
    retrained = scores(artefacts, "retrain", seeds)
    rows = []
    for name, label in models.items():
        found = scores(artefacts, name, seeds)
        row: dict[str, Any] = {"model": label}
        for column, key in FIGURES.items():
            if (effect := figure(found, key)) is not None:
                row[column] = shown(effect)
        if name != "retrain":
            if quality := forget_quality(found, retrained):
                row["forget quality (p)"] = float(np.median(quality))
            if leak := privacy_leakage(found, retrained):
                row["PrivLeak (%)"] = shown(over_seeds(leak))
        rows.append(row)
    return Table(title, rows)


def trajectory(artefacts: Artefacts, name: str, seeds: Iterable[int], key: str) -> plots.Line:
    """A figure along the training of a model: the mean over seeds, with its interval."""
    found = [artefacts[f"{name}_{seed}"].series(f"answers/{key}") for seed in seeds]
    steps, values = found[0][0], np.asarray([y for _, y in found], np.float64)
    if len(found) == 1:
        return plots.Line(steps, values[0].tolist())
    each = [over_seeds(column.tolist()) for column in values.T]
    return plots.Line(steps, *([e[i] for e in each] for i in range(3)))


def training_plots(
    artefacts: Artefacts,
    methods: Mapping[str, str],
    seeds: Iterable[int],
    folder: Path,
    suffix: str = "",
) -> dict[str, Path]:
    """Forgetting, keeping and the one against the other along training, one line a method; and each
    question before and after."""
    seeds = tuple(seeds)
    retrained = scores(artefacts, "retrain", seeds)
    made = {}
    for part, meaning in (("forget", "to forget: lower"), ("retain", "to keep: higher")):
        key = f"{part}_probability"
        level = float(np.mean([score.values[key] for score in retrained]))
        made[key + suffix] = plots.lines(
            folder / "plots" / f"{key}{suffix}.png",
            {label: trajectory(artefacts, m, seeds, key) for m, label in methods.items()},
            x="unlearning step",
            y="mean probability of the answers",
            title=f"Answers {meaning} is better",
            reference=("retrained", level),
        )
    keys = ("forget_probability", "retain_probability")
    paths = {
        label: plots.Line(*(trajectory(artefacts, name, seeds, key).y for key in keys))
        for name, label in methods.items()
    }
    paths["retrained"] = plots.Line(
        *([float(np.mean([score.values[key] for score in retrained]))] for key in keys)
    )
    made["trade_off" + suffix] = plots.trade_off(
        folder / "plots" / f"trade_off{suffix}.png",
        paths,
        x="probability of answers to forget",
        y="probability of answers to keep",
        title="From fine-tuned (hollow) to unlearned (large): up and left is better",
    )
    made["questions" + suffix] = plots.before_after(
        folder / "plots" / f"questions{suffix}.png",
        {label: _each_question(artefacts, name, seeds[0]) for name, label in methods.items()},
        x="probability of the answer before",
        y="after unlearning",
        title="Each question of one seed",
    )
    return made


def _each_question(artefacts: Artefacts, name: str, seed: int) -> dict[str, plots.Line]:
    """Probability of each answer before and after, in one repetition."""
    found = {}
    for part, label in (("retain", "to keep"), ("forget", "to forget")):
        before, after = (
            np.exp(-scores(artefacts, model, (seed,))[0].rows[f"{part}_loss"])
            for model in ("finetune", name)
        )
        found[label] = plots.Line(before.tolist(), after.tolist())
    return found
