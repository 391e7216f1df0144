"""Claims, tables and plots of sequential_requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.common import reporting
from experiments.unlearning.common.reporting import read_effect
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

_MUSE = "arXiv 2407.06460, the sustainability criterion"
_FALLS = "utility falls with every further request, for all methods (a figure: UNVERIFIED)"

CLAIMS = (
    Claim(
        "GradDiff is not sustainable: the answers to keep have a lower probability after the last "
        "request than after the first (first less last, above 0).",
        _MUSE,
        _FALLS,
        read_effect("graddiff_retain_fall"),
        above(0.0),
    ),
    Claim(
        "Nor is NPO+RT (first less last, above 0).",
        _MUSE,
        _FALLS,
        read_effect("npo_rt_retain_fall"),
        above(0.0),
        "Three seeds of four requests; neither more of them nor a longer stream was tried.",
    ),
    Claim(
        "After the last request NPO+RT keeps more of the retained answers' probability than "
        "GradDiff (difference above 0).",
        "arXiv 2404.05868, section 5.2",
        "forget10, one request: a high utility where gradient ascent's is 0",
        read_effect("npo_rt_minus_graddiff_retain"),
        above(0.0),
    ),
    Claim(
        "Requests disturb one another: what NPO+RT forgot first is more probable after the last "
        "request than after its own (difference above 0).",
        "arXiv 2407.10223, why adapters are made orthogonal (UNVERIFIED)",
        "no figure",
        read_effect("npo_rt_first_return"),
        above(0.0),
        "With all three methods every further request makes the earlier answers less probable: in "
        "this small model, trained from scratch, forgetting one author forgets the others too. A "
        "pretrained model with an adapter (--model smollm2) was not tried.",
    ),
)

# Of each model along a stream, the mean probability of the answers to:
GROUPS = ("this request", "earlier requests", "later requests", "what is kept")


def results(
    labels: Mapping[str, str],
    asked: Sequence[slice],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    streams = {
        name: np.asarray([_stream(artefacts, name, asked, seed) for seed in seeds])
        for name in labels
    }
    values = {
        # [method][seed][model: fine-tuned, after each request][request, and last what is kept]
        "probabilities": {name: found.tolist() for name, found in streams.items()},
        "effects": {name: effect._asdict() for name, effect in _effects(streams).items()},
    }
    title = "Mean probability of the answers after each request (95 % over seeds)"
    table = Table(title, _rows(labels, streams, seeds, artefacts))
    return Results(values, [table], _plots(labels, streams, asked, seeds, artefacts, folder))


def _of_parts(rows: Mapping[str, np.ndarray], asked: Sequence[slice], prefix: str = ""):
    """The mean probability of the answers of each request, and of those to keep."""
    forget, retain = (
        np.exp(-rows[f"{prefix}{part}_loss"].astype(np.float64)) for part in ("forget", "retain")
    )
    return [*(float(forget[part].mean()) for part in asked), float(retain.mean())]


def _stream(
    artefacts: Mapping[str, Artefact], name: str, asked: Sequence[slice], seed: int
) -> list[list[float]]:
    """The probabilities of each model of a stream: [1 + requests][requests + 1]."""
    models = ["finetune", *(f"{name}_{i + 1}" for i in range(len(asked)))]
    return [_of_parts(artefacts[f"{model}_{seed}_score"].rows, asked) for model in models]


def _groups(found: np.ndarray, number: int) -> dict[str, Effect]:
    """After request `number` (from 1); found: [seeds, 1 + requests, requests + 1]."""
    now = found[:, number]
    parts = (now[:, number - 1 : number], now[:, : number - 1], now[:, number:-1], now[:, -1:])
    return {
        group: reporting.over_seeds(part.mean(1).tolist())
        for group, part in zip(GROUPS, parts, strict=True)
        if part.shape[1]
    }


def _effects(streams: Mapping[str, np.ndarray]) -> dict[str, Effect]:
    """Of several seeds: one has no interval, and decides nothing."""
    if any(len(found) < 2 for found in streams.values()):
        return {}
    kept = {name: found[:, :, -1] for name, found in streams.items()}
    found = {
        f"{name}_retain_fall": reporting.over_seeds((x[:, 1] - x[:, -1]).tolist())
        for name, x in kept.items()
    }
    for name, x in streams.items():
        found[f"{name}_first_return"] = reporting.over_seeds((x[:, -1, 0] - x[:, 1, 0]).tolist())
    if {"npo_rt", "graddiff"} <= kept.keys():
        more = kept["npo_rt"][:, -1] - kept["graddiff"][:, -1]
        found["npo_rt_minus_graddiff_retain"] = reporting.over_seeds(more.tolist())
    return found


def _rows(
    labels: Mapping[str, str],
    streams: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, label in labels.items():
        for number in range(1, streams[name].shape[1]):
            groups = _groups(streams[name], number)
            shown = {name: reporting.shown(effect) for name, effect in groups.items()}
            row = {group: shown.get(group) for group in GROUPS}
            rows.append({"method": label, "requests": number} | row)
    gold = reporting.scores(artefacts, "retrain", seeds)
    never, kept = (
        reporting.over_seeds([float(score.values[f"{part}_probability"]) for score in gold])
        for part in ("forget", "retain")
    )
    levels = {"earlier requests": reporting.shown(never), "what is kept": reporting.shown(kept)}
    rows.append({"method": "retrained"} | levels)
    return rows


def _plots(
    labels: Mapping[str, str],
    streams: Mapping[str, np.ndarray],
    asked: Sequence[slice],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> dict[str, Path]:
    gold = reporting.scores(artefacts, "retrain", seeds)
    made = {}
    for column, part, title in (
        (-1, "retain", "Answers to keep, request after request: higher is better"),
        (0, "forget", "Answers of the first request: lower is better"),
    ):
        level = float(np.mean([score.values[f"{part}_probability"] for score in gold]))
        made[f"{part}_along_requests"] = plots.lines(
            folder / "plots" / f"{part}_along_requests.png",
            {label: _line(streams[name][:, :, column]) for name, label in labels.items()},
            x="requests fulfilled",
            y="mean probability of the answers",
            title=title,
            reference=("retrained", level),
        )
    for name, label in labels.items():
        made[f"{name}_stream"] = plots.lines(
            folder / "plots" / f"{name}_stream.png",
            _along(artefacts, name, asked, seeds),
            x="unlearning step, over all requests",
            y="mean probability of the answers",
            title=f"{label}: each request's answers, and those to keep",
        )
    return made


def _line(values: np.ndarray) -> plots.Line:
    """values: [seeds, points], from point 0 on."""
    each = [reporting.over_seeds(column.tolist()) for column in values.T]
    return plots.Line(range(len(each)), *([effect[i] for effect in each] for i in range(3)))


def _along(
    artefacts: Mapping[str, Artefact], name: str, asked: Sequence[slice], seeds: Sequence[int]
) -> dict[str, plots.Line]:
    """The mean over seeds of what was measured along all trainings of a stream."""
    steps: list[int] = []
    found: list[np.ndarray] = []
    for number in range(len(asked)):
        trainings = [artefacts[f"{name}_{number + 1}_{seed}"] for seed in seeds]
        # The first point of a training is the last one of the training before.
        points = [point["step"] for point in trainings[0].history][1 if number else 0 :]
        done = steps[-1] if steps else 0
        for point in points:
            each = [_of_parts(t.rows, asked, f"{point}/answers/") for t in trainings]
            steps.append(done + point)
            found.append(np.mean(each, 0))
    columns = np.stack(found, 1)
    names = [*(f"request {i + 1}" for i in range(len(asked))), "kept"]
    return {
        label: plots.Line(steps, column.tolist())
        for label, column in zip(names, columns, strict=True)
    }
