"""Variants, claims, tables and plots of uld_small."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.unlearning.common import reporting
from experiments.unlearning.common.methods import METHODS, Name
from kd_jax.evaluation import tofu
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, above, below

Artefacts = Mapping[str, Any]


class Variant(NamedTuple):
    """What the assistant's data are augmented by."""

    label: str
    paraphrases: bool = True
    wrong: bool = True


BASELINES: tuple[Name, ...] = ("graddiff", "npo_rt")
VARIANTS = {
    "uld": Variant("ULD"),
    "uld_paraphrases": Variant("ULD, paraphrases only", wrong=False),
    "uld_wrong": Variant("ULD, wrong answers only", paraphrases=False),
    "uld_plain": Variant("ULD, no augmentation", paraphrases=False, wrong=False),
}


def _effect(name: str):
    def read(results: Results) -> Effect:
        return Effect(**results.values["effects"][name])

    return read


# What was tried, shown beside a claim that does not hold.
_KEPT = (
    "After 45 epochs of fine-tuning, chosen on other seeds, both keep nearly everything; with "
    "fewer epochs other claims turned out otherwise too. A pretrained model was not tried."
)
_AUGMENTED = (
    "Paraphrases alone, wrong answers alone, both and neither; fewer epochs of fine-tuning on "
    "other seeds. The assistant is trained from the first layers of a small model that has learnt "
    "nothing but these authors: uniform on wrong answers, it remembers the right ones less well. A "
    "pretrained model (--model smollm2) was not tried."
)

CLAIMS = (
    Claim(
        "ULD forgets: the mean probability of forgotten answers falls below half of the fine-tuned "
        "model's.",
        "arXiv 2406.08607, Table 2",
        "Llama-2-7B-chat, TOFU-10%: forget quality 0.52, where the next best, NPO+KL, has 0.07",
        _effect("uld_forget_kept"),
        below(0.5),
    ),
    Claim(
        "ULD keeps at least nine tenths of the retained answers' probability.",
        "arXiv 2406.08607, Table 2",
        "TOFU-10%: model utility 0.62, as before unlearning",
        _effect("uld_retain_kept"),
        above(0.9),
    ),
    Claim(
        "ULD keeps more of the retained answers' probability than GradDiff (difference).",
        "arXiv 2406.08607, Table 2",
        "TOFU-10%: utility 0.62 against 0.05 of GA+KL",
        _effect("uld_minus_graddiff_retain"),
        above(0.0),
    ),
    Claim(
        "ULD keeps more of the retained answers' probability than NPO+RT (difference).",
        "arXiv 2406.08607, Table 2 and section 4.2",
        "NPO loses 17 % of its utility on average; TOFU-10%: 0.62 against 0.32 of NPO+KL",
        _effect("uld_minus_npo_rt_retain"),
        above(0.0),
        _KEPT,
    ),
    Claim(
        "Without augmentation ULD ends further from the retrained model: the distance between "
        "their truth ratios on the forget set is larger (Kolmogorov-Smirnov statistic, "
        "difference).",
        "arXiv 2406.08607, Table 4",
        "TOFU-10%: forget quality 1e-7 without, 0.52 with it",
        _effect("plain_minus_uld_distance"),
        above(0.0),
        _AUGMENTED,
    ),
    Claim(
        "Without augmentation ULD keeps less of the retained answers' probability (difference).",
        "arXiv 2406.08607, Table 4",
        "TOFU-10%: model utility 0.53 without, 0.62 with it",
        _effect("uld_minus_plain_retain"),
        above(0.0),
        _AUGMENTED,
    ),
)


def results(
    artefacts: Artefacts, trained: Mapping[str, int], seeds: Iterable[int], folder: Path
) -> Results:
    """trained: how many parameters "model" and "assistant" have to train."""
    seeds = tuple(seeds)
    methods = {name: METHODS[name].label for name in BASELINES}
    assistants = {name: variant.label for name, variant in VARIANTS.items()}
    models = {"finetune": "fine-tuned", "retrain": "retrained", **methods, **assistants}
    found = {name: reporting.scores(artefacts, name, seeds) for name in models}
    distances = {
        name: _distance(found[name], found["retrain"]) for name in models if name != "retrain"
    }
    table = reporting.table(
        artefacts, models, seeds, "After unlearning (answers to forget and to keep)"
    )
    counts = {name: trained["assistant" if name in assistants else "model"] for name in models}
    rows = [
        {**row, "distance to retrained": _shown(distances.get(name)), "trained": counts[name]}
        for name, row in zip(models, table.rows, strict=True)
    ]
    values = {
        "models": {name: [dict(score.values) for score in found[name]] for name in models},
        "distances": distances,
        "trained": dict(trained),
        "effects": {k: e._asdict() for k, e in _effects(found, distances).items()},
    }
    made = reporting.training_plots(artefacts, methods | {"uld": "ULD"}, seeds, folder)
    made["augmentation"] = _ablation(found, distances, assistants, folder)
    return Results(values, [table._replace(rows=rows)], made)


def _distance(found: Sequence[Any], retrained: Sequence[Any]) -> list[float]:
    """The KS statistic between truth ratios on the forget set, of each repetition."""
    key = "forget_truth_ratio"
    return [
        tofu.forget_quality(score.rows[key], gold.rows[key]).statistic
        for score, gold in zip(found, retrained, strict=True)
    ]


def _effects(
    found: Mapping[str, Sequence[Any]], distances: Mapping[str, Sequence[float]]
) -> dict[str, Effect]:
    retain = "retain_probability"
    apart = np.subtract(distances["uld_plain"], distances["uld"]).tolist()
    return {
        "uld_forget_kept": reporting.share(found["uld"], found["finetune"], "forget_probability"),
        "uld_retain_kept": reporting.share(found["uld"], found["finetune"], retain),
        "uld_minus_graddiff_retain": reporting.difference(found["uld"], found["graddiff"], retain),
        "uld_minus_npo_rt_retain": reporting.difference(found["uld"], found["npo_rt"], retain),
        "plain_minus_uld_distance": reporting.over_seeds(apart),
        "uld_minus_plain_retain": reporting.difference(found["uld"], found["uld_plain"], retain),
    }


def _ablation(
    found: Mapping[str, Sequence[Any]],
    distances: Mapping[str, Sequence[float]],
    assistants: Mapping[str, str],
    folder: Path,
) -> Path:
    groups: dict[str, dict[str, Effect | float]] = {
        "forget probability": {},
        "retain probability": {},
        "distance to retrained": {},
    }
    for name, label in assistants.items():
        for part in ("forget", "retain"):
            values = [score.values[f"{part}_probability"] for score in found[name]]
            groups[f"{part} probability"][label] = reporting.shown(reporting.over_seeds(values))
        groups["distance to retrained"][label] = _shown(distances[name])
    return plots.bars(
        folder / "plots" / "augmentation.png",
        groups,
        y="lower, higher and lower is better",
        title="What the assistant's augmented data do",
    )


def _shown(values: Sequence[float] | None) -> Any:
    return None if values is None else reporting.shown(reporting.over_seeds(values))
