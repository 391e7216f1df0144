"""What muse_small measures of a model, and its report.

`config` is that of the experiment. Figures are in percent; "verbatim_2" is of the passages of the
first two requests.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from experiments.unlearning import _passages
from kd_jax.data import shapes
from kd_jax.evaluation import muse
from kd_jax.evaluation.intervals import mean_interval
from kd_jax.evaluation.muse import Scores
from kd_jax.launch import evaluation, generation, plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.stages import Evaluation, Program, mesh_of, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.score import answer_statistics
from kd_jax.steps import make_eval_step


@functools.cache  # one step for all stages, so that they share compilations
def _scoring(config: DecoderConfig) -> Any:
    return make_eval_step(answer_statistics(decoder.decoder(config)))


def along(config: Any, requests: tuple[int, ...], every: int) -> Evaluation:
    """The figures along a training."""

    def run(params, carry, frozen) -> Mapping[str, float]:
        return measure(config, params["model"], mesh_of(params), requests)

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        return _programs(config, params["model"])

    return Evaluation("muse", every, run, plan)


def measure(config: Any, weights: Any, mesh: Mesh, requests: Sequence[int]) -> dict[str, float]:
    """The figures after so many requests: {"verbatim_2": ...}; auc is MUSE's, in [0, 1].

    The membership score is the min-k% loss (k = 0.4) of a whole passage but its first and its last
    token; MUSE's has the last one too.
    """
    passages = _passages.load(config.data)
    forget = passages.forget[: max(requests) * config.data.forget]
    _, rows = evaluation.evaluate(
        _scoring(config.model),
        {"model": weights, "aux": {}},
        {},
        {},
        _passages.rows([*forget, *passages.holdout]),
        batch_size=config.score_batch,
        mesh=mesh,
    )
    members, others = np.split(rows["min_k"], [len(forget)])

    def recalled(split: Callable[[list[int]], tuple[list[int], list[int]]]) -> np.ndarray:
        pieces = map(split, [*forget, *passages.retain])
        prompts, truths = zip(*pieces, strict=True)
        written = generation.generate(
            config.model,
            weights,
            prompts,
            max_new=len(truths[0]),
            batch_size=config.score_batch,
            mesh=mesh,
        )
        texts = ([passages.tokenizer.decode(x) for x in found] for found in (written, truths))
        return muse.verbatim_memorisation(*texts)

    verbatim, cued = recalled(_passages.halves), recalled(_passages.cued)
    found = {}
    for number in requests:
        count = number * config.data.forget
        found |= {
            f"verbatim_{number}": verbatim[:count].mean(),
            f"cued_{number}": cued[:count].mean(),
            f"auc_{number}": muse.forget_auc(members[:count], others),
            f"cued_retain_{number}": cued[len(forget) :].mean(),
            f"verbatim_retain_{number}": verbatim[len(forget) :].mean(),
        }
    return {name: float(value) for name, value in found.items()}


def planned(config: Any, weights: Weights, mesh: Mesh) -> Mapping[str, Program]:
    """What `measure` compiles, for a Compute."""
    return _programs(config, shapes_on(weights, mesh, decoder.rules(config.model)))


def _programs(config: Any, weights: Any) -> dict[str, Program]:
    mesh, length, rows = mesh_of(weights), config.data.length, config.score_batch
    params, batch = {"model": weights, "aux": {}}, shapes.text(rows, length)
    found = {"scores": evaluation.program(_scoring(config.model), params, {}, {}, batch, mesh=mesh)}
    passage = [0] * (length + 1)
    for name, split in (("verbatim", _passages.halves), ("cued", _passages.cued)):
        prompt, truth = split(passage)
        found[name] = generation.program(
            config.model,
            weights,
            max_new=len(truth),
            batch_size=rows,
            length=len(prompt),
            mesh=mesh,
        )
    return found


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
GRADIENT = tuple(LABELS)[2:-1]  # the methods that train
UNLEARNT = tuple(LABELS)[2:]


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


def results(
    config: Any, methods: Sequence[str], artefacts: Mapping[str, Artefact], folder: Path
) -> Results:
    seeds, requests = range(config.seeds), tuple(config.requests)
    chosen = [_chosen(artefacts, methods, seed, requests) for seed in seeds]
    effects = {
        name: _interval(x)._asdict()
        for name, x in _effects(chosen, requests[-1]).items()
        if None not in x
    }
    found = {request: _models(chosen, request) for request in (0, *requests)}
    tables = [
        _table("All passages forgotten at once (mean over seeds, 95 %)", found[0]),
        _table("The first part alone", found[1]),
        _table(f"After {requests[-1]} requests, one after the other", found[requests[-1]]),
    ]
    values = {
        "effects": effects,
        "all": found[0],
        "requests": {str(number): found[number] for number in requests},
    }
    return Results(values, tables, _plots(found, artefacts, seeds, folder))


# Of one seed: (scores, those of the retrained model) by method and request; request 0 is all.
Seed = dict[tuple[str, int], tuple[Scores, Scores]]


def _scores(point: Mapping[str, Any], number: int, retrained_auc: float) -> Scores:
    leakage = muse.privacy_leakage(float(point[f"auc_{number}"]), retrained_auc)
    figures = {
        name: float(point[f"{name}_{number}"]) for name in ("verbatim", "cued", "cued_retain")
    }
    return Scores(figures["verbatim"], figures["cued"], leakage, figures["cued_retain"])


def _points(artefact: Artefact) -> list[dict[str, Any]]:
    """What was measured, at the start and along the training."""
    return [
        {name.removeprefix("muse/"): value for name, value in point.items()}
        for point in artefact.history
    ]


def _chosen(
    artefacts: Mapping[str, Artefact],
    methods: Sequence[str],
    seed: int,
    requests: Sequence[int],
) -> Seed:
    """MUSE's choice along each training: the first model with less utility than the retrained one,
    else the last."""
    gold = _points(artefacts[f"retrained_{seed}"])[-1]
    target = _points(artefacts[f"target_{seed}"])[-1]
    found: Seed = {}
    for request in (0, *requests):
        number = request or requests[-1]
        auc = float(gold[f"auc_{number}"])
        retrained = _scores(gold, number, auc)
        stage = f"{request or 'all'}_{seed}"
        points = {
            "retrained": [gold],
            "target": [target],
            "task_vector": [artefacts[f"task_vector_{stage}"].values],
        } | {name: _points(artefacts[f"{name}_{stage}"])[1:] for name in methods}
        for name, along in points.items():
            scores = [_scores(point, number, auc) for point in along]
            epoch = muse.chosen_epoch(
                [s.knowledge_retain for s in scores], retrained.knowledge_retain
            )
            found[name, request] = scores[epoch], retrained
    return found


def _effects(seeds: Sequence[Seed], last: int) -> dict[str, list[float | None]]:
    """One value a seed of what each claim is about."""

    def lost(seed: Seed, request: int) -> float:
        first, then = (
            [seed[name, number][0].knowledge_retain for name in GRADIENT] for number in (1, request)
        )
        return float(np.mean(np.subtract(first, then)))

    def least(seed: Seed) -> float | None:
        """None where no method removed what was learnt by heart."""
        pairs = [seed[name, 0] for name in UNLEARNT]
        removed = [x.privacy_leakage for x, gold in pairs if x.verbatim <= gold.verbatim]
        return min(map(abs, removed), default=None)

    return {
        "target_leakage": [seed["target", 0][0].privacy_leakage for seed in seeds],
        "ga_verbatim": [seed["ga", 0][0].verbatim - seed["ga", 0][1].verbatim for seed in seeds],
        "most_met": [
            float(max(sum(muse.met(*seed[name, 0])) for name in UNLEARNT)) for seed in seeds
        ],
        "least_leakage": [least(seed) for seed in seeds],
        "lost_with_size": [lost(seed, 0) for seed in seeds],
        "lost_along_requests": [lost(seed, last) for seed in seeds],
    }


def _interval(values: Sequence[Any]) -> Effect:
    return Effect(*mean_interval(np.asarray(values, np.float64)))


def _models(seeds: Sequence[Seed], request: int) -> dict[str, dict[str, Any]]:
    """Of each model: its figures with intervals, and in how many seeds it meets each criterion."""
    found = {}
    for name in LABELS:
        pairs = [seed[name, request] for seed in seeds]
        met = np.sum([muse.met(*pair) for pair in pairs], axis=0)
        found[name] = {
            key: _interval([getattr(scores, key) for scores, _ in pairs]) for key in Scores._fields
        } | {"met": dict(zip(Scores._fields, met.tolist(), strict=True))}
    return found


COLUMNS = {
    "verbatim": "verbatim",
    "knowledge_forget": "cued recall, forget",
    "privacy_leakage": "PrivLeak (%)",
    "knowledge_retain": "cued recall, retain",
}


def _table(title: str, models: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, label in LABELS.items():
        row = {"model": label} | {column: models[name][key] for key, column in COLUMNS.items()}
        rows.append(row | {"criteria met": sum(models[name]["met"].values())})
    return Table(title, rows)


def _plots(
    found: Mapping[int, Mapping[str, Any]],
    artefacts: Mapping[str, Artefact],
    seeds: Sequence[int],
    folder: Path,
) -> dict[str, Path]:
    plot = folder / "plots"
    leakage = plots.ranking(
        plot / "privacy_leakage.png",
        {LABELS[name]: found[0][name]["privacy_leakage"] for name in LABELS},
        x="privacy leakage (%)",
        title="0 is ideal; left: still remembered, right: forgotten too well",
    )
    requests = sorted(found)[1:]
    utility = plots.lines(
        plot / "requests.png",
        {
            LABELS[name]: _along([found[n][name]["knowledge_retain"] for n in requests], requests)
            for name in UNLEARNT
        },
        x="requests so far",
        y="cued recall of passages to keep (%)",
        title="What is kept along a stream of requests",
        reference=("retrained", found[0]["retrained"]["knowledge_retain"].estimate),
    )
    paths = {}
    for name in GRADIENT:
        trainings = [_points(artefacts[f"{name}_all_{seed}"]) for seed in seeds]
        paths[LABELS[name]] = plots.Line(
            *(
                np.mean([[p[f"{key}_{requests[-1]}"] for p in x] for x in trainings], 0).tolist()
                for key in ("verbatim", "cued_retain")
            )
        )
    for name in ("retrained", "task_vector"):
        point = found[0][name]
        paths[LABELS[name]] = plots.Line(
            [point["verbatim"].estimate], [point["knowledge_retain"].estimate]
        )
    trade = plots.trade_off(
        plot / "trade_off.png",
        paths,
        x="verbatim memorisation of passages to forget (%)",
        y="cued recall of passages to keep (%)",
        title="From the target (hollow) along unlearning: up and left is better",
    )
    return {"privacy_leakage": leakage, "requests": utility, "trade_off": trade}


def _along(effects: Sequence[Effect], x: Sequence[float]) -> plots.Line:
    return plots.Line(x, *([e[i] for e in effects] for i in range(3)))
