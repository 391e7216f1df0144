"""Claims, table and plots of fisher_vs_regmean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merging.common.config import Common
from experiments.merging.common.reporting import difference, line, over_seeds, row
from experiments.merging.parts import pairs
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

BY_LAYER = "AdaMerging, by layer"
MERGES = (
    "average",
    "task arithmetic",
    "TIES",
    "Fisher",
    "Fisher, validated",
    "RegMean",
    "AdaMerging, by task",
    BY_LAYER,
    "AdaMerging, by layer, training images",
)
_TRIED = (
    "On validation images of seeds 0 and 1: coefficients from 1/T, 30, 100 and 300 steps, batches "
    "of 128, label smoothing of 0.1, 1200 images in pretraining. Nothing was more than 2 points "
    "above the plain average, and more steps were worse; with six tasks two fell to 13 %, chance. "
    "With weight decay of 5e-3 100 steps gained 8 points, and 1000 lost all of them and more."
)
# fusion_bench's averages over 8 CLIP tasks, not fully tuned.
_TABLE = "fusion_bench, CLIP ViT-B/32 on 8 tasks"


def _claim(
    ours: str, theirs: str, source: str, paper: str, bound: float = 0.0, tried: str = ""
) -> Claim:
    least = "above" if bound == 0 else f"at most {-bound:g} points below"
    return Claim(
        f"{ours} is {least} {theirs} in normalised accuracy (mean difference of paired seeds, in "
        "points).",
        source,
        f"{_TABLE}: {paper}",
        difference(("normalised", ours), ("normalised", theirs)),
        above(bound),
        tried,
    )


def _shrunk(results: Results) -> Effect | None:
    """What shrinking the off-diagonals gains with the fewest images, over keeping them."""
    found = results.values["samples"]
    if not {"0.9", "1.0"} <= found.keys():
        return None
    shrunk, kept = (np.array(found[factor])[:, 0] for factor in ("0.9", "1.0"))
    return over_seeds(shrunk - kept)


CLAIMS = (
    _claim("Fisher", "average", "arXiv 2111.09832, section 5", "70.6 against 66.5"),
    Claim(
        "Of two specialists the Fisher-weighted average is above the plain one, each with the "
        "weight that is best on validation images (mean difference of paired seeds in normalised "
        "accuracy, in points).",
        "arXiv 2111.09832, section 5.1 (UNVERIFIED)",
        "above or equal for robust fine-tuning",
        difference(("pair", "Fisher"), ("pair", "average")),
        above(0.0),
    ),
    _claim("RegMean", "Fisher", "arXiv 2212.09849, Table 1 (UNVERIFIED)", "82.4 against 70.6"),
    _claim("RegMean", "average", "arXiv 2212.09849, Table 1 (UNVERIFIED)", "82.4 against 66.5"),
    _claim("RegMean", "task arithmetic", _TABLE, "82.4 against 68.0"),
    _claim("RegMean", "TIES", _TABLE, "82.4 against 72.2"),
    _claim(
        BY_LAYER, "RegMean", "arXiv 2310.02575, Table 1 (UNVERIFIED)", "82.6 and 82.4", -2.0, _TRIED
    ),
    _claim(
        BY_LAYER,
        "AdaMerging, by task",
        "arXiv 2310.02575, Table 1 (UNVERIFIED)",
        "82.6 against 68.7",
        tried=_TRIED,
    ),
    _claim(
        "AdaMerging, by task",
        "task arithmetic",
        "arXiv 2310.02575, Table 1 (UNVERIFIED)",
        "68.7 against 68.0",
        tried=_TRIED,
    ),
    Claim(
        "From few images RegMean needs its off-diagonals shrunk: at the fewest, by 0.9 is above "
        "not at all in normalised accuracy (mean difference of paired seeds, in points).",
        "arXiv 2212.09849, section 4 (UNVERIFIED)",
        "a factor of 1 degrades the merge",
        _shrunk,
        above(0.0),
    ),
)


def results(
    config: Common,
    artefacts: Sequence[Any],
    curves: Mapping[float, Sequence[str]],
    samples: Sequence[int],
    proper: str,
    folder: Path,
) -> Results:
    """artefacts: of each seed; curves: {factor: names of RegMean at each of `samples`}; proper: the
    name of the one that stands for RegMean.
    """
    found = [artefact.values for artefact in artefacts]

    def seeds(name: str, measure: str) -> np.ndarray:
        stage = proper if name == "RegMean" else name
        return np.array([values[f"{stage}/{measure}"] for values in found])

    shown = ("pretrained", *MERGES)
    normalised = {name: seeds(name, "normalised") for name in shown}
    rows = [row("specialist", {task: seeds("specialist", task) for task in config.names})]
    rows += [
        row(
            name,
            {"normalised": normalised[name]} | {task: seeds(name, task) for task in config.names},
        )
        for name in shown
    ]
    by_samples = {
        factor: [[values[f"{name}/normalised"] for name in names] for values in found]
        for factor, names in curves.items()
    }
    drawn = {
        "ranking": plots.ranking(
            folder / "plots" / "ranking.png",
            {name: over_seeds(normalised[name]) for name in MERGES},
            x="normalised accuracy (%)",
            title=f"{config.tasks} specialists merged, {config.seeds} seeds (95 %)",
        ),
        "samples": plots.lines(
            folder / "plots" / "samples.png",
            {f"off-diagonals x {factor:g}": line(samples, x) for factor, x in by_samples.items()},
            x="images of each task",
            y="normalised accuracy (%)",
            title=f"RegMean by the number of images, {config.seeds} seeds (95 %)",
            log_x=True,
            reference=("average", float(normalised["average"].mean())),
        ),
        "pairs": plots.lines(
            folder / "plots" / "pairs.png",
            {
                kind: line(pairs.SHARES, np.array([a.rows[f"pair/{kind}"] for a in artefacts]))
                for kind in pairs.KINDS
            },
            x="weight of the first specialist",
            y="normalised accuracy (%)",
            title=f"Two specialists merged, {config.seeds} seeds (95 %)",
        ),
        "tasks": plots.heatmap(
            folder / "plots" / "tasks.png",
            {
                name: {task: float(seeds(name, task).mean()) for task in config.names}
                for name in ("specialist", *shown)
            },
            title="Test accuracy (%), mean over seeds",
        ),
    }
    values = {
        "normalised": {name: x.tolist() for name, x in normalised.items()},
        "pair": {k: [x[f"pair/{k}/normalised"] for x in found] for k in pairs.KINDS},
        "samples": {str(factor): x for factor, x in by_samples.items()},
    }
    return Results(values, [Table("Accuracy after merging (%)", rows)], drawn)
