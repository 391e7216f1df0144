"""How well clusters are new classes, and whether relations to the known classes are kept."""

from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from kd_jax.launch.evaluation import EvalStep
from kd_jax.types import Model, Output

PyTree = Any


def matched(clusters: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """[classes]: the class of each cluster, one to one, so that most examples are right.

    clusters, targets: [N], from 0 to classes - 1. By the Hungarian method.
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (clusters, targets), 1)
    return linear_sum_assignment(-counts)[1]


def measures(
    old: np.ndarray, known: np.ndarray, novel: np.ndarray, targets: np.ndarray, temperature: float
) -> dict[str, float]:
    """Of cosines old, known [N, K] and novel [N, H, U]; targets [N], the new classes from K on.

    clustering: % of images of new classes whose cluster, the likeliest of U, is matched to their
        class. all: % of all images right among K + U, clusters matched so. Means over heads.
    divergence: KL(p_old || p_new) over the known classes, nats; mass: of the known classes among
        K + U. Means over images of new classes, p = softmax(cosines / temperature).
    """
    count, heads, classes = known.shape[-1], novel.shape[1], novel.shape[-1]
    new = targets >= count
    found: dict[str, list[float]] = {"clustering": [], "all": [], "mass": []}
    for h in range(heads):
        clusters = novel[new, h].argmax(-1)
        class_of = matched(clusters, targets[new] - count, classes)
        every = np.concatenate([known, novel[:, h]], -1)
        answer = np.concatenate([np.arange(count), count + class_of])[every.argmax(-1)]
        found["clustering"].append(100 * np.mean(class_of[clusters] == targets[new] - count))
        found["all"].append(100 * np.mean(answer == targets))
        found["mass"].append(_softmax(every[new] / temperature)[:, :count].sum(-1).mean())
    p, q = (_softmax(x[new].astype(np.float64) / temperature) for x in (old, known))
    divergence = np.mean((p * np.log(p / q)).sum(-1))
    return {name: float(np.mean(x)) for name, x in found.items()} | {"divergence": divergence}


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def cosines(model: Model, old: Model) -> EvalStep:
    """Rows "known" [B, S, K], "novel" [B, S, H, U] and "old" [B, S, K] of models side by side."""

    def run(params: PyTree, carry: PyTree, frozen: PyTree, batch: Any) -> Output:
        def one(params: PyTree, before: PyTree) -> dict[str, jax.Array]:
            taps = model.apply(params, batch, taps=("known", "novel")).taps
            return {**taps, "old": old.apply(before, batch, taps=("known",)).taps["known"]}

        found = jax.vmap(one)(params, frozen["teacher"])
        return Output({}, {}, {name: x.swapaxes(0, 1) for name, x in found.items()})

    return run
