"""Claims, table and plots of twin_density."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merging.common.config import Common
from experiments.merging.common.reporting import difference, line, over_seeds, row
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

PLAIN = ("average", "task arithmetic", "task arithmetic, validated")


def twin(density: float) -> str:
    """The name of Twin-Merging with the router's weights."""
    return f"Twin at {density:g}"


def known(density: float) -> str:
    """The name of Twin-Merging with the right model's exclusive part alone."""
    return f"Twin at {density:g}, task known"


def _kept(results: Results) -> Effect | None:
    found = results.values["normalised"].get(twin(1.0))
    return None if found is None else over_seeds(found)


_GAIN = "28.34 points over task arithmetic on discriminative tasks (abstract)"

CLAIMS = (
    *(
        Claim(
            f"Twin-Merging at density 0.1 is above {theirs} in normalised accuracy (mean "
            "difference of paired seeds, in points).",
            "arXiv 2406.15479, abstract and Table 2 (UNVERIFIED)",
            paper,
            difference(("normalised", twin(0.1)), ("normalised", theirs)),
            above(0.0),
        )
        for theirs, paper in (
            ("average", "above it on GLUE (UNVERIFIED)"),
            ("task arithmetic", _GAIN),
            ("task arithmetic, validated", _GAIN),
        )
    ),
    Claim(
        "A higher density keeps more: 1 is above 0.05 in normalised accuracy (mean difference of "
        "paired seeds, in points).",
        "arXiv 2406.15479, section 4 (compression; UNVERIFIED)",
        "accuracy falls slowly as exclusive parts are compressed",
        difference(("normalised", twin(1.0)), ("normalised", twin(0.05))),
        above(0.0),
    ),
    Claim(
        "At density 1 the router's mixtures keep at least 95 % of the specialists' accuracy "
        "(normalised accuracy, per cent).",
        "arXiv 2406.15479, Table 2 (UNVERIFIED)",
        "near the specialists",
        _kept,
        above(95.0),
    ),
)


def results(
    config: Common,
    found: Sequence[Mapping[str, Any]],
    densities: Sequence[float],
    folder: Path,
) -> Results:
    """found: the values of each seed."""

    def seeds(key: str) -> np.ndarray:
        return np.array([values[key] for values in found])

    names = [*PLAIN, *(f(density) for f in (twin, known) for density in densities)]
    normalised = {name: seeds(f"{name}/normalised") for name in ("pretrained", *names)}
    kept = {f(d): seeds(f"stored/{d:g}") for f in (twin, known) for d in densities}
    rows: list[Mapping[str, Any]] = [
        row("specialist", {task: seeds(f"specialist/{task}") for task in config.names})
    ]
    for name, values in normalised.items():
        columns = {"normalised": values} | {t: seeds(f"{name}/{t}") for t in config.names}
        share = {"numbers kept (%)": float(kept[name].mean())} if name in kept else {}
        rows.append(row(name, columns) | share)
    of_router = row("router", {task: seeds(f"router/{task}") for task in config.names})
    curves = {
        label: line(densities, np.stack([normalised[f(d)] for d in densities], axis=1))
        for label, f in (("by the router", twin), ("task known", known))
    }
    flat = {
        name: line(densities, np.stack([normalised[name]] * len(densities), axis=1))
        for name in ("task arithmetic", "task arithmetic, validated")
    }
    drawn = {
        "density": plots.lines(
            folder / "plots" / "density.png",
            curves | flat,
            x="density of the exclusive parts",
            y="normalised accuracy (%)",
            title=f"Twin-Merging of {config.tasks} specialists, {config.seeds} seeds (95 %)",
            log_x=True,
            reference=("average", float(normalised["average"].mean())),
        ),
        "router": plots.heatmap(
            folder / "plots" / "router.png",
            {
                task: {to: 100 * float(seeds(f"routed/{task}/{to}").mean()) for to in config.names}
                for task in config.names
            },
            x="weight of the specialist of (%)",
            y="images of",
            title="The router's mean weights on test images",
            low=0.0,
            high=100.0,
        ),
    }
    accuracy = seeds("router/all")
    values = {
        "normalised": {name: x.tolist() for name, x in normalised.items()},
        "router": accuracy.tolist(),
        "stored": {f"{d:g}": seeds(f"stored/{d:g}").tolist() for d in densities},
    }
    tables = [
        Table("Accuracy after merging (%)", rows),
        Table("The router's accuracy (%)", [of_router | {"all": over_seeds(accuracy)}]),
    ]
    return Results(values, tables, drawn)
