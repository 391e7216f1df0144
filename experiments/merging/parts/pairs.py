"""Two specialists averaged with every share, plainly and by their Fisher information."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.merging.common import measuring
from experiments.merging.common.specialists import Models
from kd_jax.merging.average import average
from kd_jax.merging.fisher import fisher_merge, weights_to_try

PyTree = Any
KINDS = ("average", "Fisher")
SHARES = tuple(i / 20 for i in range(21))  # of the first specialist


def measured(models: Models, fishers: Sequence[PyTree], judge: measuring.Judge) -> dict[str, Any]:
    """{"pair/kind": [SHARES], "pair/kind/normalised": number} of the first two specialists.

    Normalised accuracies on test images, means over the two tasks: at each share, and at the one
    that is best on validation images. fishers, judge: of these or more specialists.
    """
    thetas = list(models.specialists.values())[:2]
    weights = weights_to_try(jax.random.key(0), 2, len(SHARES))
    merged = {
        "average": _averages(thetas, weights),
        "Fisher": fisher_merges(thetas, list(fishers[:2]), weights),
    }
    found: dict[str, Any] = {}
    for kind, trunks in merged.items():
        validation, test = (
            measuring.accuracies(
                judge.benchmark, judge.head, trunks, type(sets)(*(x[:2] for x in sets))
            )
            for sets in (judge.validation, judge.test)
        )
        at = [measuring.normalised(reached, judge.own[:2]) for reached in test]
        found[f"pair/{kind}"] = np.array(at)
        found[f"pair/{kind}/normalised"] = at[int(validation.mean(-1).argmax())]
    return found


@jax.jit
def fisher_merges(thetas: PyTree, fishers: PyTree, weights: jax.Array) -> PyTree:
    """Leaves [S, ...] for weights [S, T]; all tasks are alike, so there is no target."""
    return jax.lax.map(lambda w: fisher_merge(thetas, fishers, w, favour_target=False), weights)


@jax.jit
def _averages(thetas: PyTree, weights: jax.Array) -> PyTree:
    return jax.lax.map(lambda w: average(thetas, w), weights)
