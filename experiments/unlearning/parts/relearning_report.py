"""Claims, tables and plots of relearning_robustness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.common import reporting
from experiments.unlearning.common.reporting import read_effect
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below, within

_RELEARNING = "arXiv 2406.13356, the attack with a part of the forgotten data (UNVERIFIED)"
_BITS = "arXiv 2410.16454, abstract"
_RESTORED = (
    "methods with utility constraints retain 21 % of the forgotten knowledge in full precision and "
    "83 % at 4 bits"
)
_LOWER = (
    "One rate of unlearning, at which rounding lowers all probabilities a little. Lower rates, to "
    "which the paper attributes the effect, were not tried, nor a pretrained model."
)

CLAIMS = (
    Claim(
        "Relearning half of what GradDiff forgot brings back the other half: its probability rises "
        "by more than in the retrained model (difference of rises, above 0).",
        _RELEARNING,
        "forgotten knowledge comes back from a small, loosely related set",
        read_effect("graddiff_relearned"),
        above(0.0),
    ),
    Claim(
        "So does relearning half of what NPO+RT forgot (difference of rises, above 0).",
        _RELEARNING,
        "forgotten knowledge comes back from a small, loosely related set",
        read_effect("npo_rt_relearned"),
        above(0.0),
    ),
    Claim(
        "SimNPO is harder to relearn than NPO+RT: the probability of the held-out answers rises by "
        "less (difference of rises, below 0).",
        "arXiv 2410.07163, the relearning attack (UNVERIFIED)",
        "SimNPO stays below NPO over all epochs of relearning",
        read_effect("simnpo_minus_npo_rt_relearned"),
        below(0.0),
    ),
    Claim(
        "Rounding to 4 bits brings back what GradDiff forgot (rise of its probability, above 0).",
        _BITS,
        _RESTORED,
        read_effect("graddiff_4bit_rise"),
        above(0.0),
        _LOWER,
    ),
    Claim(
        "Rounding to 4 bits brings back what NPO+RT forgot (rise of its probability, above 0).",
        _BITS,
        _RESTORED,
        read_effect("npo_rt_4bit_rise"),
        above(0.0),
        _LOWER,
    ),
    Claim(
        "Rounding to 8 bits does not: the probability of what NPO+RT forgot moves by less than "
        "0.05.",
        "arXiv 2410.16454, Table 1 (UNVERIFIED)",
        "8 bits are as good as full precision",
        read_effect("npo_rt_8bit_rise"),
        within(-0.05, 0.05),
    ),
)


def results(
    labels: Mapping[str, str],
    attackers: Mapping[int, np.ndarray],
    bits: Sequence[int],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    """labels: of all models, "finetune" and "retrain" among them. attackers: {seed: places, in
    what was forgotten, of the answers that the attacker has}."""
    curves = {name: _curves(artefacts, name, attackers) for name in labels if name != "finetune"}
    rounded = {name: _rounded(artefacts, name, tuple(attackers), bits) for name in labels}
    values = {
        # [model][seed][point along relearning]
        "held_out": {name: held.tolist() for name, (_, held, _) in curves.items()},
        # [model][form][part][seed]
        "rounded": rounded,
        "effects": {k: e._asdict() for k, e in _effects(curves, rounded, len(attackers)).items()},
    }
    rows = []
    for name, label in labels.items():
        row: dict[str, Any] = {"model": label}
        columns = ("held out", "held out, relearned", "attacker's, relearned")
        row |= dict.fromkeys(columns)
        if name in curves:
            _, held, known = curves[name]
            ends = (held[:, 0], held[:, -1], known[:, -1])
            for column, x in zip(columns, ends, strict=True):
                row[column] = reporting.shown(reporting.over_seeds(x.tolist()))
        for form, parts in rounded[name].items():
            for part, x in parts.items():
                row[f"{part}, {form}"] = reporting.shown(reporting.over_seeds(x))
        rows.append(row)
    title = "Mean probability of the answers under both attacks (95 % over seeds)"
    made = _plots(labels, curves, rounded, folder)
    return Results(values, [Table(title, rows)], made)


# (steps, held-out answers [seeds, points], the attacker's [seeds, points])
Curves = tuple[list[int], np.ndarray, np.ndarray]
Rounded = Mapping[str, Mapping[str, list[float]]]


def _curves(
    artefacts: Mapping[str, Artefact], name: str, attackers: Mapping[int, np.ndarray]
) -> Curves:
    steps: list[int] = []
    held, known = [], []
    for seed, places in attackers.items():
        training = artefacts[f"{name}_relearned_{seed}"]
        steps = [point["step"] for point in training.history]
        found = np.stack([training.rows[f"{step}/answers/forget_loss"] for step in steps])
        probability = np.exp(-found.astype(np.float64))
        known.append(probability[:, places].mean(1))
        held.append(np.delete(probability, places, 1).mean(1))
    return steps, np.stack(held), np.stack(known)


def _rounded(
    artefacts: Mapping[str, Artefact], name: str, seeds: Sequence[int], bits: Sequence[int]
) -> Rounded:
    """{form: {part: probability for each seed}}."""
    stages = {"as trained": "{name}_{seed}_score"}
    stages |= {f"{b}bit": f"{{name}}_{b}bit_{{seed}}" for b in bits}
    return {
        form: {
            part: [
                float(artefacts[stage.format(name=name, seed=seed)].values[f"{part}_probability"])
                for seed in seeds
            ]
            for part in ("forget", "retain")
        }
        for form, stage in stages.items()
    }


def _effects(
    curves: Mapping[str, Curves], rounded: Mapping[str, Rounded], seeds: int
) -> dict[str, Effect]:
    """Of several seeds: one has no interval, and decides nothing."""
    if seeds < 2:
        return {}
    held = {name: x for name, (_, x, _) in curves.items()}
    rises = {name: x[:, -1] - x[:, 0] for name, x in held.items()}
    found = {}
    for name, rise in rises.items():
        if name != "retrain":
            more = rise - rises["retrain"]
            found[f"{name}_relearned"] = reporting.over_seeds(more.tolist())
    for name, forms in rounded.items():
        before = np.asarray(forms["as trained"]["forget"])
        for form, parts in forms.items():
            if form != "as trained":
                rise = np.asarray(parts["forget"]) - before
                found[f"{name}_{form}_rise"] = reporting.over_seeds(rise.tolist())
    if {"simnpo", "npo_rt"} <= held.keys():
        less = rises["simnpo"] - rises["npo_rt"]
        found["simnpo_minus_npo_rt_relearned"] = reporting.over_seeds(less.tolist())
    return found


def _plots(
    labels: Mapping[str, str],
    curves: Mapping[str, Curves],
    rounded: Mapping[str, Rounded],
    folder: Path,
) -> dict[str, Path]:
    made = {
        "relearning": plots.lines(
            folder / "plots" / "relearning.png",
            {labels[name]: _line(steps, held) for name, (steps, held, _) in curves.items()},
            x="relearning step",
            y="mean probability of the held-out answers",
            title="Forgotten answers that the attacker does not have",
            reference=("fine-tuned", float(np.mean(rounded["finetune"]["as trained"]["forget"]))),
        )
    }
    for part, meaning in (("forget", "Answers to forget"), ("retain", "Answers to keep")):
        made[f"{part}_rounded"] = plots.bars(
            folder / "plots" / f"{part}_rounded.png",
            {
                label: {form: reporting.over_seeds(p[part]) for form, p in rounded[name].items()}
                for name, label in labels.items()
            },
            y="mean probability",
            title=f"{meaning}, with rounded weights",
        )
    return made


def _line(steps: Sequence[int], values: np.ndarray) -> plots.Line:
    """values: [seeds, points]."""
    each = [reporting.over_seeds(column.tolist()) for column in values.T]
    return plots.Line(steps, *([effect[i] for effect in each] for i in range(3)))
