"""Claims, tables and plots of npo_tofu."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.unlearning.common import reporting
from experiments.unlearning.common.methods import Method
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, above, below


def _effect(name: str):
    def read(results: Results) -> Effect | None:
        found = results.values["effects"].get(name)
        return None if found is None else Effect(**found)

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


def results(
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    labels = {name: method.label for name, method in methods.items()}
    models = {"finetune": "fine-tuned", **labels, "retrain": "retrained"}
    scores = {name: reporting.scores(artefacts, name, seeds) for name in models}
    values = {
        "models": {name: [dict(score.values) for score in scores[name]] for name in models},
        "trajectories": {
            name: [artefacts[f"{name}_{seed}"].history for seed in seeds] for name in models
        },
        "forget_quality": {
            name: quality
            for name in models
            if name != "retrain"
            and (quality := reporting.forget_quality(scores[name], scores["retrain"]))
        },
        "effects": {name: effect._asdict() for name, effect in _effects(scores).items()},
    }
    title = "After training (95 % over questions, or over seeds where there are several)"
    return Results(
        values,
        [reporting.table(artefacts, models, seeds, title)],
        _plots(methods, seeds, artefacts, folder),
    )


def _effects(scores: Mapping[str, Sequence[Artefact]]) -> dict[str, Effect]:
    """Of the methods that were run."""
    forget, retain, start = "forget_probability", "retain_probability", "finetune"
    found = {}
    if "ga" in scores:
        found["ga_retain_kept"] = reporting.share(scores["ga"], scores[start], retain)
    if "npo_rt" in scores:
        found["npo_rt_forget_kept"] = reporting.share(scores["npo_rt"], scores[start], forget)
    if "ga" in scores and "npo_rt" in scores:
        found["npo_rt_minus_ga_retain"] = reporting.difference(
            scores["npo_rt"], scores["ga"], retain
        )
    if "ga" in scores and "npo" in scores:
        found["ga_over_npo_forget_rise"] = _rises(*(scores[n] for n in ("ga", "npo", start)))
    return found


def _rises(ga: Sequence[Artefact], npo: Sequence[Artefact], start: Sequence[Artefact]) -> Effect:
    """How much more the loss on forgotten answers has risen under GA than under NPO."""
    columns = [
        np.stack([score.rows["forget_loss"].astype(np.float64) for score in trio], 1)
        for trio in zip(ga, npo, start, strict=True)
    ]

    def ratio(x: np.ndarray) -> float:
        high, low, before = x.mean(0)
        return (high - before) / (low - before)

    if len(columns) == 1:
        return Effect(*bootstrap_interval(columns[0], seed=0, statistic=ratio))
    return reporting.over_seeds([float(ratio(x)) for x in columns])


def _plots(
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> dict[str, Path]:
    """A set of plots for each group of methods: twenty lines in one cannot be told apart."""
    made = {}
    for group in dict.fromkeys(method.group for method in methods.values()):
        labels = {name: m.label for name, m in methods.items() if m.group == group}
        made |= reporting.training_plots(artefacts, labels, seeds, folder, f"_{group}")
    return made
