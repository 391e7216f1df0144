"""What the reports of the family share: intervals over seeds, tables, lines, heat maps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Effect, Results
from kd_jax.launch.effects import over_seeds


def line(x: Sequence[float], values: Sequence[Sequence[float]] | np.ndarray) -> plots.Line:
    """Means over seeds with intervals; values: [seeds, len(x)]."""
    effects = [over_seeds(column) for column in np.asarray(values).T]
    return plots.Line(x, *([effect[i] for effect in effects] for i in range(3)))


def row(name: str, columns: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, str | Effect]:
    """A table's row: {column: one value a seed} as effects."""
    return {"model": name} | {key: over_seeds(values) for key, values in columns.items()}


def places(names: Sequence[str], order: Sequence[str]) -> list[int]:
    """Where each task stands in the order of a seed."""
    return [order.index(name) for name in names]


def task_means(
    stages: Mapping[str, str],
    names: Sequence[str],
    orders: Mapping[int, Sequence[str]],
    artefacts: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """{model: {task: mean over seeds}} of the rows "model/tasks", for a heat map.

    stages: {model: the stage that measured it}. orders: the tasks in the order of each seed's rows.
    """
    found = {}
    for model, stage in stages.items():
        rows = [
            artefacts[f"{stage}_{seed}"].rows[f"{model}/tasks"][places(names, order)]
            for seed, order in orders.items()
        ]
        found[model] = dict(zip(names, np.mean(rows, 0).tolist(), strict=True))
    return found


def difference(ours: Sequence[str], theirs: Sequence[str]) -> Callable[[Results], Effect | None]:
    """For a claim: values[ours...] - values[theirs...], paired over seeds.

    ours, theirs: keys into `Results.values`, one after the other, to one value a seed; None where
    one of them is not there.
    """

    def read(results: Results) -> Effect | None:
        first, second = _at(results.values, ours), _at(results.values, theirs)
        return None if first is None or second is None else over_seeds(np.subtract(first, second))

    return read


def _at(values: Mapping, path: Sequence[str]) -> Sequence[float] | None:
    found = values
    for key in path:
        if key not in found:
            return None
        found = found[key]
    return found  # pyright: ignore[reportReturnType]
