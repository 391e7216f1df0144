"""Claims, tables and plots of flat_divergences: what is kept at equal forgetting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.unlearning.common import reporting
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above


class Crossing(NamedTuple):
    """Where a training first has a given share less probability of the answers to forget.

    step: of the training. kept: probability of the answers to keep there, over that of the start.
    """

    step: float
    kept: float


def crossing(training: Artefact, drop: float) -> Crossing | None:
    """Read linearly between two measurements; None of a training that does not get there."""
    steps, forget = training.series("answers/forget_probability")
    _, retain = training.series("answers/retain_probability")
    level = (1 - drop) * forget[0]
    for i in range(1, len(steps)):
        if forget[i] <= level:
            part = (forget[i - 1] - level) / (forget[i - 1] - forget[i])
            step = steps[i - 1] + part * (steps[i] - steps[i - 1])
            kept = retain[i - 1] + part * (retain[i] - retain[i - 1])
            return Crossing(float(step), float(kept / retain[0]))
    return None


FLAT = ("flat_tv", "flat_js", "flat_pearson", "flat_kl")


def _more_than(other: str, ours: Sequence[str]) -> Callable[[Results], Effect | None]:
    """What the worst of ours in each repetition keeps at the first drop, less what another does;
    None where one was not run, or did not forget so much."""

    def read(results: Results) -> Effect | None:
        found = results.values["kept"]
        if not {*ours, other} <= found.keys():
            return None
        kept = [found[name][0] for name in (*ours, other)]
        if any(x is None for seeds in kept for x in seeds):
            return None
        *first, second = np.asarray(kept, np.float64)
        return reporting.over_seeds((np.min(first, 0) - second).tolist())

    return read


CLAIMS = tuple(
    Claim(
        f"{statement} (difference of the shares kept; paired seeds).",
        "arXiv 2410.11143, section 4 (numbers UNVERIFIED)",
        "TOFU and Harry Potter: higher utility than GA and NPO at similar or better forgetting",
        effect,
        above(0.0),
    )
    for statement, effect in (
        (
            "At equal forgetting FLAT by total variation keeps more of the answers to keep than GA",
            _more_than("ga", ("flat_tv",)),
        ),
        (
            "At equal forgetting FLAT by total variation keeps more of the answers to keep than "
            "NPO without a retain term",
            _more_than("npo", ("flat_tv",)),
        ),
        (
            "So does every one of the four divergences, against GA: the worst of them in each "
            "repetition",
            _more_than("ga", FLAT),
        ),
        (
            "So does every one of the four divergences, against NPO: the worst of them in each "
            "repetition",
            _more_than("npo", FLAT),
        ),
    )
)


def results(
    methods: Mapping[str, str],
    drops: Sequence[float],
    seeds: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    """methods: {name: label}."""
    found = {
        name: [[crossing(artefacts[f"{name}_{seed}"], drop) for seed in seeds] for drop in drops]
        for name in methods
    }  # [drops][seeds]
    values = {
        "drops": list(drops),
        "kept": {n: [[x and x.kept for x in row] for row in f] for n, f in found.items()},
        "steps": {n: [[x and x.step for x in row] for row in f] for n, f in found.items()},
        "models": {
            name: [dict(score.values) for score in reporting.scores(artefacts, name, seeds)]
            for name in ("finetune", *methods, "retrain")
        },
    }
    repeated = f"{len(seeds)} seeds, 95 %"
    equal = _at_equal_forgetting(methods, drops, found, f"At equal forgetting ({repeated})")
    models = {"finetune": "fine-tuned", **methods, "retrain": "retrained"}
    final = reporting.table(artefacts, models, seeds, f"After the last step ({repeated})")
    made = reporting.training_plots(artefacts, methods, seeds, folder)
    made["kept"] = _bars(methods, drops, found, folder)
    return Results(values, [equal, final], made)


Found = Mapping[str, Sequence[Sequence[Crossing | None]]]


def _at_equal_forgetting(
    methods: Mapping[str, str], drops: Sequence[float], found: Found, title: str
) -> Table:
    rows = []
    for name, label in methods.items():
        row: dict[str, object] = {"method": label}
        for drop, crossings in zip(drops, found[name], strict=True):
            if (kept := _over_seeds(crossings, "kept")) is not None:
                row[f"kept at -{drop:.0%}"] = reporting.shown(kept)
        if (step := _over_seeds(found[name][0], "step")) is not None:
            row[f"step of -{drops[0]:.0%}"] = reporting.shown(step)
        rows.append(row)
    return Table(title, rows)


def _over_seeds(crossings: Sequence[Crossing | None], field: str) -> Effect | None:
    """None where a repetition did not forget so much."""
    if any(x is None for x in crossings):
        return None
    return reporting.over_seeds([getattr(x, field) for x in crossings])


def _bars(methods: Mapping[str, str], drops: Sequence[float], found: Found, folder: Path) -> Path:
    groups: dict[str, dict[str, Effect | float]] = {}
    for i in np.argsort(drops):
        kept = {label: _over_seeds(found[name][i], "kept") for name, label in methods.items()}
        groups[f"{drops[i]:.0%}"] = {
            label: reporting.shown(effect) for label, effect in kept.items() if effect is not None
        }
    return plots.bars(
        folder / "plots" / "kept.png",
        groups,
        x="probability lost by the answers to forget",
        y="share kept by the answers to keep",
        title="At equal forgetting: higher is better",
    )
