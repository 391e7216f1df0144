"""Claims, tables and plots of latent_adversarial."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.common import reporting
from kd_jax.evaluation import tofu
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

Artefacts = Mapping[str, Any]

LABELS = {"plain": "without LAT", "latent": "with LAT", "retrain": "retrained"}


def _effect(name: str):
    def read(results: Results) -> Effect:
        return Effect(**results.values["effects"][name])

    return read


CLAIMS = (
    Claim(
        "Relearned on half of the forgotten questions, the model unlearned without LAT gets more "
        "of the other half back (difference of its mean probability along relearning).",
        "arXiv 2407.15549, section 4.3 (values UNVERIFIED)",
        "less recovery of unlearned knowledge by relearning on a part of it",
        _effect("relearned"),
        above(0.0),
        "Three seeds, one radius and one layer: relearning brings nearly everything back with and "
        "without LAT, with it a little later. More layers or seeds were not tried.",
    ),
    Claim(
        "A fresh latent attack of the radius of the training gets more of the forgotten answers "
        "out of the model unlearned without LAT (difference of their mean probability).",
        "arXiv 2407.15549, section 4 (values UNVERIFIED)",
        "less susceptible to attacks that bring the unlearned behaviour back",
        _effect("attacked"),
        above(0.0),
    ),
    Claim(
        "LAT keeps at least nine tenths of the retained answers' probability that the same "
        "unlearning has without it.",
        "arXiv 2407.15549, section 4.3 (values UNVERIFIED)",
        "little loss of general capabilities",
        _effect("retain_kept"),
        above(0.9),
    ),
)


def results(
    artefacts: Artefacts, eps: float, radii: Sequence[float], seeds: Iterable[int], folder: Path
) -> Results:
    """radii: of the fresh adversary, in parts of eps, the radius of training; 1 is among them."""
    seeds = tuple(seeds)
    models = {"finetune": "fine-tuned", **LABELS}
    scores = {name: reporting.scores(artefacts, name, seeds) for name in models}
    relearned = {name: [held_out(artefacts, name, seed) for seed in seeds] for name in LABELS}
    # Along relearning: after its start.
    along = {name: [chances[1:].mean(0) for _, chances in relearned[name]] for name in LABELS}
    attacked = {
        name: [
            [artefacts[f"{name}_{seed}_attacked"].rows[f"attacked_rows_{i}"] for seed in seeds]
            for i in range(len(radii))
        ]
        for name in LABELS
    }
    own = radii.index(1.0)
    effects = {
        "relearned": _difference(along["plain"], along["latent"]),
        "attacked": _difference(attacked["plain"][own], attacked["latent"][own]),
        "retain_kept": reporting.share(scores["latent"], scores["plain"], "retain_probability"),
    }
    rows = []
    for name, label in models.items():
        row: dict[str, Any] = {"model": label}
        for part in ("forget", "retain"):
            effect = reporting.figure(scores[name], f"{part}_probability")
            row[f"{part} probability"] = effect and reporting.shown(effect)
        if name in LABELS:
            row["along relearning, held out"] = reporting.shown(_mean(along[name]))
            for radius, found in zip(radii, attacked[name], strict=True):
                row[f"attacked, radius {radius * eps:g}"] = reporting.shown(_mean(found))
        rows.append(row)
    values = {
        "models": {name: [dict(score.values) for score in scores[name]] for name in models},
        "relearned": {
            name: [[steps, chances.mean(1).tolist()] for steps, chances in relearned[name]]
            for name in LABELS
        },
        "effects": {name: effect._asdict() for name, effect in effects.items()},
    }
    title = "Unlearned with and without LAT (probabilities of answers to forget and to keep)"
    return Results(
        values,
        [Table(title, rows)],
        {
            "relearning": _relearning(relearned, folder),
            "attack": _attack(scores, attacked, eps, radii, folder),
        },
    )


def held_out(artefacts: Artefacts, name: str, seed: int) -> tuple[list[int], np.ndarray]:
    """(steps of relearning [P], probability of each answer that is not relearned [P, N])."""
    artefact = artefacts[f"{name}_relearned_{seed}"]
    steps = artefact.series("answers/forget_probability")[0]
    losses = [artefact.rows[f"{step}/answers/forget_loss"] for step in steps]
    return steps, np.stack([tofu.probability(loss)[1::2] for loss in losses])


def _mean(each: Sequence[np.ndarray]) -> Effect:
    """The mean of a probability of each question [N]: over seeds, or of one over its questions."""
    if len(each) == 1:
        return Effect(*bootstrap_interval(each[0].astype(np.float64), seed=0))
    return reporting.over_seeds([float(x.mean()) for x in each])


def _difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Effect:
    """By pairs of seeds, or of questions."""
    return _mean([a.astype(np.float64) - b for a, b in zip(first, second, strict=True)])


def _line(x: Sequence[float], each: Sequence[Effect]) -> plots.Line:
    return plots.Line(x, *([e[i] for e in each] for i in range(3)))


def _relearning(relearned: Mapping[str, Sequence[Any]], folder: Path) -> Path:
    series = {}
    for name, label in LABELS.items():
        steps, chances = relearned[name][0][0], [found for _, found in relearned[name]]
        each = [_mean([found[i] for found in chances]) for i in range(len(steps))]
        series[label] = _line(steps, each)
    return plots.lines(
        folder / "plots" / "relearning.png",
        series,
        x="step of relearning on the other half",
        y="probability of forgotten answers, held out",
        title="Relearning a part: what comes back of the rest",
    )


def _attack(
    scores: Mapping[str, Any],
    attacked: Mapping[str, Sequence[Sequence[np.ndarray]]],
    eps: float,
    radii: Sequence[float],
    folder: Path,
) -> Path:
    order = np.argsort(radii)
    series = {}
    for name, label in LABELS.items():
        losses = [score.rows["forget_loss"] for score in scores[name]]
        unattacked = _mean([tofu.probability(loss.astype(np.float64)) for loss in losses])
        found = [_mean(attacked[name][i]) for i in order]
        series[label] = _line([0.0, *(eps * radii[i] for i in order)], [unattacked, *found])
    return plots.lines(
        folder / "plots" / "attack.png",
        series,
        x="radius of a fresh latent attack",
        y="probability of forgotten answers",
        title="What an adversary gets out of the activations",
    )
