"""Claims, table and plots of ddk_domains."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.parts.domains import perplexities
from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below

ARMS = {"uniform": "uniform", "ddk": "DDK"}
NOISE = 0.02  # nats a character


def _difference(
    measure: str, first: str, second: str, of: Callable[[np.ndarray], np.ndarray]
) -> Callable[[Results], Effect | None]:
    """of(first) - of(second), paired by seed; of: [seeds, rounds + 1] -> [seeds]."""

    def read(results: Results) -> Effect | None:
        found = results.values[measure]
        each = of(np.asarray(found[first])) - of(np.asarray(found[second]))
        return Effect(*mean_interval(each)) if len(each) > 1 else None

    return read


def _last(x: np.ndarray) -> np.ndarray:
    return x[:, -1]


def _along(x: np.ndarray) -> np.ndarray:
    """The mean over rounds of the logarithm."""
    return np.log(x[:, 1:]).mean(-1)


CLAIMS = (
    Claim(
        "After equally many tokens the largest ratio of the student's perplexity to the teacher's "
        "over domains is smaller with DDK (uniform less DDK, above 0; paired seeds, test rows).",
        "arXiv 2407.16154, Algorithm 1 (why the weights move)",
        "qualitative: the gap between domains shrinks",
        _difference("largest", "uniform", "ddk", _last),
        above(0.0),
    ),
    Claim(
        "It falls faster: the logarithm of the largest ratio, in the mean over rounds, is smaller "
        "with DDK (uniform less DDK, above 0).",
        "arXiv 2407.16154, Algorithm 1",
        "qualitative",
        _difference("largest", "uniform", "ddk", _along),
        above(0.0),
    ),
    Claim(
        "The mean loss over domains is not worse with DDK by more than noise (DDK less uniform, "
        f"below {NOISE} nats a character).",
        "arXiv 2407.16154, Table 1",
        "average of benchmarks 55.41 with DDK, 52.87 with uniform KD (Qwen-1.5 14B to 1.8B)",
        _difference("nll", "ddk", "uniform", _last),
        below(NOISE),
    ),
)


def results(
    names: Sequence[str],
    rounds: int,
    seeds: Sequence[int],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    teacher = perplexities(artefacts["teacher"].values, names, "test")
    student, weights = {}, {}  # [seeds, rounds + 1, domains]
    for arm in ARMS:
        rows = [
            [f"start_{seed}", *(f"{arm}_{i + 1}_{seed}" for i in range(rounds))] for seed in seeds
        ]
        student[arm] = np.array(
            [[perplexities(artefacts[x].values, names, "test") for x in row] for row in rows]
        )
        weights[arm] = np.array(
            [
                [[artefacts[x].values[f"domains/{name}_weight"] for name in names] for x in row]
                for row in rows
            ]
        )
    ratios = {arm: found / teacher for arm, found in student.items()}
    values = {
        "domains": list(names),
        "ratios": {arm: x.tolist() for arm, x in ratios.items()},
        "largest": {arm: x.max(-1).tolist() for arm, x in ratios.items()},
        "nll": {arm: np.log(x).mean(-1).tolist() for arm, x in student.items()},
        "weights": {arm: x.tolist() for arm, x in weights.items()},
        "teacher": np.log(teacher).tolist(),
    }
    table = [
        _row("start", names, student["ddk"][:, 0], teacher),
        *(_row(label, names, student[arm][:, -1], teacher) for arm, label in ARMS.items()),
        {"student": "the teacher"}
        | {f"{name}: NLL": float(x) for name, x in zip(names, np.log(teacher), strict=True)}
        | {"mean NLL": float(np.log(teacher).mean())},
    ]
    title = f"After the last round (95 % over {len(seeds)} seeds)"
    return Results(values, [Table(title, table)], _plots(names, ratios, weights["ddk"], folder))


def _row(
    label: str, names: Sequence[str], student: np.ndarray, teacher: np.ndarray
) -> dict[str, Any]:
    """student: [seeds, domains]."""
    ratios = student / teacher
    return (
        {"student": label, "largest ratio": _over_seeds(ratios.max(-1))}
        | {f"{name}: NLL": _over_seeds(x) for name, x in zip(names, np.log(student).T, strict=True)}
        | {"mean NLL": _over_seeds(np.log(student).mean(-1))}
    )


def _plots(
    names: Sequence[str], ratios: Mapping[str, np.ndarray], weights: np.ndarray, folder: Path
) -> dict[str, Path]:
    made = {
        "largest": plots.lines(
            folder / "plots" / "largest.png",
            {label: _line(ratios[arm].max(-1)) for arm, label in ARMS.items()},
            x="round",
            y="student's perplexity / teacher's",
            title="The domain in which the student is farthest behind",
            log_y=True,
        ),
        # After the last round they are decided, but nothing is drawn by them; the first is uniform.
        "weights": plots.lines(
            folder / "plots" / "weights.png",
            {name: _drawn(weights[:, :, i]) for i, name in enumerate(names)},
            x="round",
            y="share of the rows",
            title="DDK: what a round draws from",
        ),
    }
    for arm, label in ARMS.items():
        made[f"ratios_{arm}"] = plots.lines(
            folder / "plots" / f"ratios_{arm}.png",
            {name: _line(ratios[arm][:, :, i]) for i, name in enumerate(names)},
            x="round",
            y="student's perplexity / teacher's",
            title=f"{label}: ratios of perplexities by domain",
            log_y=True,
        )
    return made


def _drawn(weights: np.ndarray) -> plots.Line:
    """weights: [seeds, rounds + 1] of one domain, as decided after each round, the start's too."""
    used = weights[:, 1:-1]
    return _line(used, start=2)


def _line(each: np.ndarray, *, start: int = 0) -> plots.Line:
    """each: [seeds, points]."""
    effects = [_over_seeds(column) for column in each.T]
    x = list(range(start, start + len(effects)))
    return plots.Line(x, *([e[i] for e in effects] for i in range(3)))


def _over_seeds(values: np.ndarray) -> Effect:
    if len(values) == 1:
        return Effect(*[float(values[0])] * 3)
    return Effect(*mean_interval(values))
