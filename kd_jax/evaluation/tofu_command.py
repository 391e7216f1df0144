"""TOFU's figures of saved per-sample logs: what `python -m kd_jax.evaluation.tofu` runs."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.evaluation import tofu, tofu_logs
from kd_jax.evaluation.tofu_logs import Samples

# Conventions of the truth ratio by name; the first is that of the published tables.
CONVENTIONS = {
    "geometric": tofu.truth_ratio,
    "arithmetic": tofu.truth_ratio_arithmetic,
    "guarded": tofu.truth_ratio_guarded,
}
Ratio = Callable[[np.ndarray, np.ndarray], np.ndarray]


def set_scores(name: str, samples: Samples, *, ratio: Ratio = tofu.truth_ratio) -> dict[str, Any]:
    """Of one set: probability, rouge, truth_ratio (its aggregate), samples and left_out.

    name: which of `tofu.SETS` it is. Probability is that of the answer for forget and retain, a
    choice among answers for the others. rouge is None where the log has none. Section 2.2.
    """
    ratios = ratio(samples.right_loss, samples.wrong_loss)
    if name in tofu_logs.PARAPHRASED:
        chances = tofu.probability(samples.answer_loss)
    else:
        chances = tofu.choice_probability(samples.answer_loss, samples.wrong_loss)
    aggregate = tofu.forget_truth_ratio if name == "forget" else tofu.retain_truth_ratio
    return {
        "probability": float(chances.mean()),
        "rouge": None if samples.rouge is None else float(samples.rouge.mean()),
        "truth_ratio": aggregate(ratios),
        "samples": len(samples.index),
        "left_out": samples.left_out,
    }


def forget_quality(
    logs: Mapping[str, Samples], retrained: Mapping[str, Samples], *, ratio: Ratio
) -> dict[str, Any]:
    """{statistic, p_value, samples} of the forget set: the indices that both logs have."""
    for whose, sets in (("logs", logs), ("retain logs", retrained)):
        if "forget" not in sets:
            raise ValueError(f"{whose}: forget quality needs {tofu_logs.FILES['forget']}")
    ours, theirs = logs["forget"], retrained["forget"]
    known = set(theirs.index)
    common = [i for i in ours.index if i in known]
    if not common:
        raise ValueError(
            f"retain logs: {tofu_logs.FILES['forget']}: shares no index with that of logs"
        )
    found = [s.at(common) for s in (ours, theirs)]
    quality = tofu.forget_quality(*(ratio(s.right_loss, s.wrong_loss) for s in found))
    return quality._asdict() | {"samples": len(common)}


def scores(
    logs: Mapping[str, Samples], retrained: Mapping[str, Samples] | None = None
) -> dict[str, Any]:
    """All that the logs of a run say, as plain data.

    sets: `set_scores` of each. utility: the nine figures, None where the logs lack one.
    model_utility: their harmonic mean, None where one is lacking. forget_quality: against the
    logs of a model retrained without the forget set, None without them. These take the geometric
    truth ratio; conventions: what depends on it, under each of the three.
    """
    under = {name: _under(logs, retrained, ratio) for name, ratio in CONVENTIONS.items()}
    chosen = under["geometric"]
    conventions = {
        name: {
            "model_utility": found["model_utility"],
            "forget_quality": found["forget_quality"],
            "truth_ratio": {part: s["truth_ratio"] for part, s in found["sets"].items()},
        }
        for name, found in under.items()
    }
    return {**chosen, "conventions": conventions}


def _under(
    logs: Mapping[str, Samples], retrained: Mapping[str, Samples] | None, ratio: Ratio
) -> dict[str, Any]:
    sets = {name: set_scores(name, logs[name], ratio=ratio) for name in tofu.SETS if name in logs}
    nine = {}
    for name in tofu.UTILITY:
        part, metric = name.split("/")
        nine[name] = sets[part][metric] if part in sets else None
    complete = None not in nine.values()
    return {
        "sets": sets,
        "utility": nine,
        "model_utility": tofu.model_utility(nine) if complete else None,
        "forget_quality": retrained and forget_quality(logs, retrained, ratio=ratio),
    }


def table(found: Mapping[str, Any]) -> str:
    """What `scores` found, for reading: geometric truth ratio."""
    metrics = ("probability", "rouge", "truth_ratio")
    lines = [f"{'set':14}{'samples':>8}" + "".join(f"{m.replace('_', ' '):>13}" for m in metrics)]
    for name, row in found["sets"].items():
        cells = "".join(f"{_figure(row[m]):>13}" for m in metrics)
        lines.append(f"{name.replace('_', ' '):14}{row['samples']:>8}{cells}")
    lines.append(f"{'model utility':22}{_figure(found['model_utility']):>13}")
    absent = [name for name, value in found["utility"].items() if value is None]
    if absent:
        lines.append(f"  not in the logs: {', '.join(absent)}")
    quality = found["forget_quality"]
    if quality:
        lines.append(
            f"{'forget quality (p)':22}{quality['p_value']:>13.3e}"
            f"   D {quality['statistic']:.4f}, {quality['samples']} samples in both logs"
        )
    left_out = sum(row["left_out"] for row in found["sets"].values())
    if left_out:
        lines.append(f"left out: {left_out} samples that lack a field")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _read(argument: str, path: str) -> Mapping[str, Samples]:
    try:
        return tofu_logs.read(path)
    except FileNotFoundError:
        raise ValueError(
            f"{argument}: there is no {path}; give a folder with {tofu_logs.AGGREGATED} or one of "
            "its files"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; its exit code: 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.evaluation.tofu",
        description="TOFU's figures of saved per-sample logs (arXiv 2401.06121).",
    )
    parser.add_argument(
        "--logs", required=True, metavar="DIR", help=f"folder of {tofu_logs.AGGREGATED}, or a file"
    )
    parser.add_argument(
        "--retain-logs",
        metavar="DIR",
        help="those of a model trained without the forget set; gives forget quality",
    )
    parser.add_argument("--json", metavar="OUT", help="a file to write all figures to")
    given = parser.parse_args(arguments)
    try:
        logs = _read("--logs", given.logs)
        retrained = _read("--retain-logs", given.retain_logs) if given.retain_logs else None
        found = scores(logs, retrained)
        if given.json:
            tofu_logs.write_json(Path(given.json), found)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0
