"""Claims, table and plots of swing_privacy."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common import reporting
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below


def _compared(compare: Callable[[np.ndarray, np.ndarray], np.ndarray], measure: str):
    """Of plain and swing distillation, paired seeds."""

    def read(results: Results) -> Effect | None:
        plain, swing = (np.array(results.values[measure][name]) for name in ("plain", "swing"))
        return None if len(plain) < 2 else reporting.over_seeds(compare(plain, swing).tolist())

    return read


CLAIMS = (
    Claim(
        "Swing distillation takes away over 80 % of the exposure of plain distillation (share of "
        "the bits, above 0.8).",
        "arXiv 2212.08349, abstract",
        "canary exposure falls by over 80 %",
        _compared(lambda plain, swing: 1 - swing / plain, "exposure"),
        above(0.8),
        "One temperature and one size of the noise; higher ones were not tried. A student that "
        "knows nothing of the secrets would be left with about 1.4 bits.",
    ),
    Claim(
        "It costs next to nothing: the NLL of held-out text rises by less than 2 %.",
        "arXiv 2212.08349, abstract",
        "competitive or better on the tasks",
        _compared(lambda plain, swing: swing / plain - 1, "nll"),
        below(0.02),
    ),
)


def results(
    labels: Mapping[str, str],
    seeds: Sequence[int],
    most: float,
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    """labels: {name: label} of the students; most: bits of a secret that is given away."""

    def ends(measure: str) -> dict[str, list[float]]:
        return {
            name: [artefacts[f"{name}_{seed}"].series(measure)[1][-1] for seed in seeds]
            for name in labels
        }

    exposure, nll = ends("exposure/mean"), ends("held_out/nll")
    teacher = artefacts["teacher"].series("exposure/mean")[1][-1]
    rows: list[dict[str, Any]] = [{"model": "teacher", "exposure (bits)": teacher}]
    rows += [
        {
            "model": label,
            "exposure (bits)": reporting.shown(reporting.over_seeds(exposure[name])),
            "held-out NLL": reporting.shown(reporting.over_seeds(nll[name])),
        }
        for name, label in labels.items()
    ]
    drawn = plots.ranking(
        folder / "plots" / "exposure.png",
        {label: reporting.over_seeds(exposure[name]) for name, label in labels.items()},
        x="exposure of the secrets (bits)",
        title="Less is more private",
        reference=("given away", most),
    )
    title = f"After training (95 % over seeds, of which there are {len(seeds)})"
    values = {"exposure": exposure, "nll": nll, "teacher_exposure": teacher}
    return Results(values, [Table(title, rows)], {"exposure": drawn})
