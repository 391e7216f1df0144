"""Claims, table and plots of smollm_student."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import reporting
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above


def _better(name: str) -> Callable[[Results], Effect | None]:
    """By how much a student's NLL ends below that of the student without teacher."""

    def read(results: Results) -> Effect | None:
        return Effect(**results.values["gains"][name])

    return read


CLAIMS = tuple(
    Claim(
        f"A student cut from SmolLM2-135M predicts held-out text better after learning from {what} "
        "than after as many steps on the text alone (difference of NLL in nats a token, above 0).",
        "arXiv 1503.02531, section 4; arXiv 1910.01108, Table 1",
        "DistilBERT keeps 97 % of BERT's score with half of its layers",
        _better(name),
        above(0.0),
    )
    for name, what in (("taught", "its teacher alone"), ("half", "the text and its teacher"))
)


def results(
    labels: Mapping[str, str],
    steps: int,
    depth: int,
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    """labels: {name: label} of the students, of which "alone" had no teacher."""
    rows = {name: artefacts[name].rows[f"{steps}/held_out/row_nll"] for name in labels}
    whole = artefacts["teacher"]
    nll = {name: _over_rows(x) for name, x in rows.items()}
    gains = {name: _over_rows(rows["alone"] - rows[name]) for name in ("half", "taught")}
    students = {f"student: {label}": nll[name] for name, label in labels.items()}
    untrained = artefacts["alone"].series("held_out/nll")[1][0]
    shown = {
        "whole model": _over_rows(whole.rows["row_nll"]),
        f"{depth} layers, untrained": Effect(untrained, untrained, untrained),
        **students,
    }
    table = Table(
        f"Held-out text (95 % over {len(rows['alone'])} rows of one seed)",
        [
            {
                "model": label,
                "NLL": reporting.shown(effect),
                "perplexity": float(np.exp(effect.estimate)),
            }
            for label, effect in shown.items()
        ],
    )
    drawn = {
        "nll": plots.ranking(
            folder / "plots" / "nll.png",
            {"whole model": shown["whole model"], **students},
            x="nats a token of held-out text",
            title=f"Students of {depth} layers after {steps} steps",
        ),
        "gain": plots.ranking(
            folder / "plots" / "gain.png",
            {labels[name]: effect for name, effect in gains.items()},
            x="nats a token less than with the text alone, row by row",
            title="What the teacher is worth",
        ),
    }
    values = {
        "nll": {name: effect._asdict() for name, effect in nll.items()},
        "gains": {name: effect._asdict() for name, effect in gains.items()},
        "teacher_nll": whole.values["nll"],
    }
    return Results(values, [table], drawn)


def _over_rows(values: np.ndarray) -> Effect:
    return Effect(*bootstrap_interval(values, seed=0))
