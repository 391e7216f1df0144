"""Tables, plots and claims of mixup_kd."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.distillation.common import endings
from experiments.distillation.parts.mixup_measures import SOFTENED, VIEWS
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds, shown

LOSSES = {"t1": "KD, T 1", "t4": "KD, T 4", "std": "std-KD"}
TEACHERS = {"plain": "plain teacher", "mixed": "mixup teacher"}
MIXES = {"none": "none mixed", "partial": "a part mixed", "full": "all mixed"}
_SOFT = {"t1": "T 1", "t4": "T 4", "std": "standardised"}
_VIEWS = {"plain": "images", "mixed": "means of two images"}

_TRIED = (
    "One size of teacher (a point better than a student without one) and of student, 2,000 images, "
    "one rate for all losses. Convolutions, more seeds and other losses' weights were not tried."
)

Accuracy = Mapping[str, Mapping[str, list[float]]]
Cells = Callable[[Accuracy], np.ndarray]


def results(
    teachers: Sequence[str],
    losses: Sequence[str],
    shares: Mapping[str, float],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    """values["accuracy"]: {"alone" or "<teacher>_<loss>": {mix: [S], %}}; values["entropy"]:
    {teacher: {"<view>_<softened>": [S], nats}}. shares: of mixed images, by mix."""
    labels = {"alone": "no teacher"} | {
        f"{t}_{loss}": f"{TEACHERS[t]}, {LOSSES[loss]}" for t in teachers for loss in losses
    }
    accuracy = {
        kind: {mix: endings.ending(artefacts[f"{kind}_{mix}"]).accuracy.tolist() for mix in shares}
        for kind in labels
    }
    entropy = {t: _entropies(artefacts[f"teacher_{t}"]) for t in teachers}
    own = {t: endings.ending(artefacts[f"teacher_{t}"]).accuracy for t in teachers}
    effects = {
        kind: {mix: over_seeds(x) for mix, x in cells.items()} for kind, cells in accuracy.items()
    }
    seeds = len(accuracy["alone"][next(iter(shares))])
    tables = [
        Table(
            f"Test accuracy of students, % (95 % over {seeds} seeds)",
            [
                {"student": labels[kind]} | {MIXES[mix]: shown(e) for mix, e in cells.items()}
                for kind, cells in effects.items()
            ],
        ),
        Table(
            "Teachers: test accuracy, %, and mean entropy of what they say, nats",
            [
                {"teacher": TEACHERS[t], "accuracy": shown(over_seeds(own[t]))}
                | {
                    f"{_VIEWS[view]}, {_SOFT[s]}": shown(over_seeds(entropy[t][f"{view}_{s}"]))
                    for view in VIEWS
                    for s in SOFTENED
                }
                for t in teachers
            ],
        ),
    ]
    made = {
        "accuracy": plots.heatmap(
            folder / "plots" / "accuracy.png",
            {
                labels[kind]: {MIXES[mix]: e.estimate for mix, e in cells.items()}
                for kind, cells in effects.items()
            },
            title="Test accuracy, %",
            digits=1,
        ),
        "entropy": plots.bars(
            folder / "plots" / "entropy.png",
            {
                f"{_SOFT[s]}\n({view})": {
                    TEACHERS[t]: over_seeds(entropy[t][f"{view}_{s}"]) for t in teachers
                }
                for view in VIEWS
                for s in SOFTENED
            },
            x="how logits are softened (test images as they are, or means of two)",
            y="entropy, nats",
            title="How soft teachers are",
            reference=("uniform", float(np.log(10))),
        ),
    }
    found = {label: _over(of, accuracy) for label, of in _CHANGES.items()}
    if changes := {label: effect for label, effect in found.items() if effect is not None}:
        made["changes"] = plots.ranking(
            folder / "plots" / "changes.png",
            changes,
            x="points of test accuracy, over paired seeds",
            title="What a change does to students",
        )
    return Results({"accuracy": accuracy, "entropy": entropy}, tables, made)


def _entropies(artefact: Artefact) -> dict[str, list[float]]:
    at = f"{artefact.values['steps']}/softness"
    return {f"{v}_{s}": artefact.rows[f"{at}/{v}_{s}"].tolist() for v in VIEWS for s in SOFTENED}


def _over(of: Cells, accuracy: Accuracy) -> Effect | None:
    """Over seeds; None where a cell that `of` reads was not run."""
    try:
        return over_seeds(of(accuracy))
    except KeyError:
        return None


def _difference(of: Cells) -> Callable[[Results], Effect | None]:
    return lambda found: _over(of, found.values["accuracy"])


def _over_mixes(kind: str) -> Cells:
    """[S]: the mean over what students see."""
    return lambda cells: np.mean(list(cells[kind].values()), 0)


def _by_temperature(teacher: str) -> Cells:
    """[S]: how much better a student does at temperature 1 than at 4."""
    return lambda cells: _over_mixes(f"{teacher}_t1")(cells) - _over_mixes(f"{teacher}_t4")(cells)


def _by_teacher(loss: str) -> Cells:
    """[S]: how much better a student does with the plain teacher."""
    return lambda cells: _over_mixes(f"plain_{loss}")(cells) - _over_mixes(f"mixed_{loss}")(cells)


def _by_mix(first: str, second: str) -> Cells:
    """[S]: how much better students with a teacher do on the first mix than on the second."""
    return lambda cells: np.mean(
        [np.subtract(x[first], x[second]) for kind, x in cells.items() if kind != "alone"], 0
    )


_CHANGES: dict[str, Cells] = {
    "T 1 for T 4, plain teacher": _by_temperature("plain"),
    "T 1 for T 4, mixup teacher": _by_temperature("mixed"),
    "plain for mixup teacher, T 1": _by_teacher("t1"),
    "plain for mixup teacher, T 4": _by_teacher("t4"),
    "plain for mixup teacher, std-KD": _by_teacher("std"),
    "a part mixed for none": _by_mix("partial", "none"),
    "a part mixed for all": _by_mix("partial", "full"),
}


def _softer(found: Results) -> Effect | None:
    entropy = found.values["entropy"]
    if not {"plain", "mixed"} <= entropy.keys():
        return None
    return over_seeds(np.subtract(entropy["mixed"]["plain_t1"], entropy["plain"]["plain_t1"]))


CLAIMS = (
    Claim(
        "A teacher that has learned mixed images is softer: the mean entropy of its predictions "
        "for test images, less that of a plain teacher, at temperature 1, nats (above 0).",
        "arXiv 2211.03946, abstract (smoothness as the link)",
        "qualitative",
        _softer,
        above(0.0),
    ),
    Claim(
        "From such a teacher, students learn better at temperature 1 than at 4 (difference of "
        "accuracies, points, mean over what students see, above 0).",
        "arXiv 2211.03946 (tables UNVERIFIED)",
        "qualitative: a high temperature on top of mixup smooths too much",
        _difference(_by_temperature("mixed")),
        above(0.0),
    ),
    Claim(
        "That is for the teacher's mixup: the difference is larger than with a plain teacher "
        "(points, above 0).",
        "arXiv 2211.03946 (tables UNVERIFIED)",
        "qualitative",
        _difference(
            lambda cells: _by_temperature("mixed")(cells) - _by_temperature("plain")(cells)
        ),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "Students with a part of their images mixed do better than those with all of them mixed "
        "(difference of accuracies, points, mean over teachers and losses, above 0).",
        "arXiv 2211.03946 (tables UNVERIFIED)",
        "qualitative: partial mixup is the strategy suggested",
        _difference(_by_mix("partial", "full")),
        above(0.0),
    ),
    Claim(
        "Standardised logits are robust to how the teacher was trained: what its mixup costs a "
        "student at temperature 4, less what it costs with them (points, above 0).",
        "arXiv 2211.03946 (tables UNVERIFIED)",
        "qualitative",
        _difference(lambda cells: _by_teacher("t4")(cells) - _by_teacher("std")(cells)),
        above(0.0),
        _TRIED,
    ),
)
