"""Claims, tables and plots of muse_small."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.common.reporting import over_seeds, shown
from kd_jax.evaluation import muse
from kd_jax.evaluation.muse import Scores
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below

LABELS = {
    "target": "target",
    "retrained": "retrained",
    "ga": "GA",
    "ga_gdr": "GA+GDR",
    "ga_klr": "GA+KLR",
    "npo": "NPO",
    "npo_gdr": "NPO+GDR",
    "npo_klr": "NPO+KLR",
    "task_vector": "task vector",
}


def _effect(name: str):
    def read(results: Results) -> Effect | None:
        found = results.values["effects"].get(name)
        return found and Effect(**found)

    return read


CLAIMS = (
    Claim(
        "The model before unlearning gives away what it learnt: its privacy leakage is below that "
        "of Books' target model, -57.5 %.",
        "arXiv 2407.06460, Table 3",
        "News -99.8, Books -57.5",
        _effect("target_leakage"),
        below(-57.5),
    ),
    Claim(
        "GA removes what was learnt by heart: verbatim memorisation not above the retrained "
        "model's (difference, in points).",
        "arXiv 2407.06460, Table 3",
        "News: 0 against 20.8",
        _effect("ga_verbatim"),
        below(0.0),
    ),
    Claim(
        "No method meets the four criteria of one request: the largest number that one of the "
        "seven meets, a mean over seeds, is below 4.",
        "arXiv 2407.06460, section 4 and Table 3",
        "News: of seven methods, none",
        _effect("most_met"),
        below(4.0),
    ),
    Claim(
        "Methods that remove verbatim memorisation leak: of those not above the retrained model, "
        "the smallest absolute privacy leakage is above 5 %.",
        "arXiv 2407.06460, Table 3",
        "News: 5.2 (GA) to 109.6",
        _effect("least_leakage"),
        above(5.0),
    ),
    Claim(
        "Scalability: more to forget costs more utility (that after one part less that after all "
        "at once, mean over the methods that train, in points).",
        "arXiv 2407.06460, section 4 (scalability)",
        "utility falls with the forget set's size for all methods, 0.8M to 3.3M tokens",
        _effect("lost_with_size"),
        above(0.0),
        "Three seeds; the sizes and rates were chosen on others. More seeds were not tried.",
    ),
    Claim(
        "Sustainability: utility falls along the stream of requests (after the first less after "
        "the last, mean over the methods that train, in points).",
        "arXiv 2407.06460, section 4 (sustainability)",
        "utility falls along four requests for all methods",
        _effect("lost_along_requests"),
        above(0.0),
    ),
)


def results(config: Any, artefacts: Mapping[str, Artefact], folder: Path) -> Results:
    seeds, requests = config.repetitions, tuple(config.requests)
    reached = [_reached(artefacts, config.methods, seed, requests) for seed in seeds]
    names = ("target", "retrained", *config.methods, "task_vector")
    effects = {
        name: over_seeds(x)._asdict()
        for name, x in _effects(reached, config.methods, requests[-1]).items()
        if None not in x
    }
    found = {request: _models(reached, names, request) for request in (0, *requests)}
    tables = [
        _table("All passages forgotten at once (95 % over seeds)", found[0]),
        _table("The first part alone", found[1]),
        _table(f"After {requests[-1]} requests, one after the other", found[requests[-1]]),
    ]
    values = {
        "effects": effects,
        "all": found[0],
        "requests": {str(number): found[number] for number in requests},
    }
    paths = {
        name: [_points(artefacts[f"{name}_all_{seed}"]) for seed in seeds]
        for name in config.methods
    }
    return Results(values, tables, _plots(found, paths, folder))


# Of one seed: (scores, those of the retrained model) by method and request; request 0 is all.
Seed = dict[tuple[str, int], tuple[Scores, Scores]]


def _scores(point: Mapping[str, Any], number: int, retrained_auc: float) -> Scores:
    leakage = muse.privacy_leakage(float(point[f"auc_{number}"]), retrained_auc)
    verbatim, recall, kept = (
        float(point[f"{name}_{number}"]) for name in ("verbatim", "recall", "recall_retain")
    )
    return Scores(verbatim, recall, leakage, kept)


def _points(artefact: Artefact) -> list[dict[str, Any]]:
    """What was measured, at the start and along the training."""
    return [
        {name.removeprefix("muse/"): value for name, value in point.items()}
        for point in artefact.history
    ]


def _reached(
    artefacts: Mapping[str, Artefact], methods: Sequence[str], seed: int, requests: Sequence[int]
) -> Seed:
    gold = _points(artefacts[f"retrained_{seed}"])[-1]
    target = _points(artefacts[f"target_{seed}"])[-1]
    found: Seed = {}
    for request in (0, *requests):
        number = request or requests[-1]
        auc = float(gold[f"auc_{number}"])
        stage = f"{request or 'all'}_{seed}"
        ends = {
            "retrained": gold,
            "target": target,
            "task_vector": artefacts[f"task_vector_{stage}"].values,
        } | {name: _points(artefacts[f"{name}_{stage}"])[-1] for name in methods}
        for name, point in ends.items():
            found[name, request] = _scores(point, number, auc), _scores(gold, number, auc)
    return found


def _effects(seeds: Sequence[Seed], trained: Sequence[str], last: int) -> dict[str, list[Any]]:
    """One value a seed of what each claim is about, None where there is nothing to say."""
    methods = (*trained, "task_vector")

    def lost(seed: Seed, request: int) -> float:
        first, then = (
            [seed[name, number][0].knowledge_retain for name in trained] for number in (1, request)
        )
        return float(np.mean(np.subtract(first, then)))

    def least(seed: Seed) -> float | None:
        pairs = [seed[name, 0] for name in methods]
        removed = [x.privacy_leakage for x, gold in pairs if x.verbatim <= gold.verbatim]
        return min(map(abs, removed), default=None)

    def ga(seed: Seed) -> float | None:
        return seed["ga", 0][0].verbatim - seed["ga", 0][1].verbatim if "ga" in trained else None

    return {
        "target_leakage": [seed["target", 0][0].privacy_leakage for seed in seeds],
        "ga_verbatim": [ga(seed) for seed in seeds],
        "most_met": [max(float(sum(muse.met(*seed[m, 0]))) for m in methods) for seed in seeds],
        "least_leakage": [least(seed) for seed in seeds],
        "lost_with_size": [lost(seed, 0) for seed in seeds],
        "lost_along_requests": [lost(seed, last) for seed in seeds],
    }


def _models(seeds: Sequence[Seed], names: Sequence[str], request: int) -> dict[str, dict[str, Any]]:
    """Of each model: its figures with intervals, and in how many seeds it meets each criterion."""
    found = {}
    for name in names:
        pairs = [seed[name, request] for seed in seeds]
        met = np.sum([muse.met(*pair) for pair in pairs], axis=0)
        figures = {
            key: over_seeds([getattr(scores, key) for scores, _ in pairs]) for key in Scores._fields
        }
        found[name] = {key: effect._asdict() for key, effect in figures.items()} | {
            "met": dict(zip(Scores._fields, met.tolist(), strict=True))
        }
    return found


COLUMNS = {
    "verbatim": "verbatim",
    "knowledge_forget": "token recall, forget",
    "privacy_leakage": "PrivLeak (%)",
    "knowledge_retain": "token recall, retain",
}


def _table(title: str, models: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, figures in models.items():
        row: dict[str, Any] = {"model": LABELS[name]}
        row |= {column: shown(Effect(**figures[key])) for key, column in COLUMNS.items()}
        met = figures["met"]
        row["seeds that meet each criterion"] = " ".join(str(met[key]) for key in COLUMNS)
        rows.append(row)
    return Table(title, rows)


def _plots(
    found: Mapping[int, Mapping[str, Any]],
    paths: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    folder: Path,
) -> dict[str, Path]:
    """paths: of each method that trains, what was measured along each seed's training."""
    plot, requests = folder / "plots", sorted(found)[1:]
    unlearnt = (*paths, "task_vector")
    leakage = plots.ranking(
        plot / "privacy_leakage.png",
        {LABELS[name]: Effect(**x["privacy_leakage"]) for name, x in found[0].items()},
        x="privacy leakage (%)",
        title="0 is ideal; left: still remembered, right: forgotten too well",
    )
    kept = {
        LABELS[name]: [Effect(**found[n][name]["knowledge_retain"]) for n in requests]
        for name in unlearnt
    }
    utility = plots.lines(
        plot / "requests.png",
        {name: plots.Line(requests, [e.estimate for e in line]) for name, line in kept.items()},
        x="requests so far",
        y="token recall of passages to keep (%)",
        title="What is kept along a stream of requests",
        reference=("retrained", found[0]["retrained"]["knowledge_retain"]["estimate"]),
    )
    lines = {}
    for name, trainings in paths.items():
        lines[LABELS[name]] = plots.Line(
            *(
                np.mean([[p[f"{key}_{requests[-1]}"] for p in x] for x in trainings], 0).tolist()
                for key in ("verbatim", "recall_retain")
            )
        )
    for name in ("retrained", "task_vector"):
        point = found[0][name]
        lines[LABELS[name]] = plots.Line(
            [point["verbatim"]["estimate"]], [point["knowledge_retain"]["estimate"]]
        )
    trade = plots.trade_off(
        plot / "trade_off.png",
        lines,
        x="verbatim memorisation of passages to forget (%)",
        y="token recall of passages to keep (%)",
        title="From the target (hollow) along unlearning: up and left is better",
    )
    return {"privacy_leakage": leakage, "requests": utility, "trade_off": trade}
