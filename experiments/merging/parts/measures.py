"""What digits_merge and fashion_merge measure of the models of a seed."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.common import measuring
from experiments.merging.common.measuring import SCALES, Judge
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import Benchmark
from experiments.merging.parts import methods
from experiments.merging.parts.methods import METHODS, Sizes
from kd_jax.merging.arithmetic import add_task_vectors, negate, task_vector
from kd_jax.merging.average import average, greedy_soup, slerp
from kd_jax.merging.dare import dare
from kd_jax.merging.sparse import by_probability, unscaled

PyTree = Any
DROPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
RESCALES = {"rescaled": by_probability, "not rescaled": unscaled}
SHARES = tuple(i / 10 for i in range(11))  # how far from one model to another


def judge(benchmark: Benchmark, models: Models) -> Judge:
    return measuring.judge(benchmark, models.head, models.specialists)


def merged(
    benchmark: Benchmark, counts: range, sizes: Sizes, seed: int, models: Models
) -> dict[str, Any]:
    """{"method/T/unsearched" or ".../searched": normalised accuracy, "method/T/scale": chosen}.

    And, for the largest T, rows "method/tasks" and "method, searched/tasks": accuracies [T].
    """
    found: dict[str, Any] = {}
    for count in counts:
        judged, reached, scales = _of_first(benchmark, models.first(count), sizes, seed)
        found |= {f"{name}/{count}/scale": scale for name, scale in scales.items()}
        for (name, kind), accuracies in reached.items():
            found[f"{name}/{count}/{kind}"] = measuring.normalised(accuracies, judged.own)
        if count == counts[-1]:
            found["specialist/tasks"] = judged.own
            for (name, kind), accuracies in reached.items():
                label = name if kind == "unsearched" else f"{name}, {kind}"
                found[f"{label}/tasks"] = accuracies
    return found


def _of_first(
    benchmark: Benchmark, models: Models, sizes: Sizes, seed: int
) -> tuple[Judge, dict[tuple[str, str], np.ndarray], dict[str, float]]:
    """What they are measured on, {(method, kind of scale): accuracies [T]}, {method: scale}."""
    thetas = list(models.specialists.values())
    key = jax.random.fold_in(jax.random.key(seed), len(thetas))
    judged = judge(benchmark, models)
    trunks = {
        ("pretrained", "unsearched"): models.base,
        ("greedy soup", "unsearched"): greedy_soup(thetas, judged.validated)[0],
    }
    scales = {}
    for name, direction in methods.directions(sizes)(models.base, thetas, key).items():
        own = add_task_vectors(models.base, [direction], scale=METHODS[name].scale)
        trunks[name, "unsearched"] = own
        if METHODS[name].searched:
            scales[name], trunks[name, "searched"] = judged.best(models.base, direction)
    return judged, {name: judged.reached(trunk) for name, trunk in trunks.items()}, scales


def ablated(
    benchmark: Benchmark, counts: range, sizes: Sizes, seed: int, models: Models
) -> dict[str, float]:
    """{"step/T": normalised accuracy, scale searched, "kind/T/share": of conflicts}.

    The multitask model knows all tasks: it lends its signs, and is measured, at the largest T.
    """
    found: dict[str, float] = {}
    for count in counts:
        some = models.first(count)
        thetas = list(some.specialists.values())
        judged = judge(benchmark, some)
        shares = methods.conflicts(sizes.trim)(some.base, thetas)
        found |= {f"{kind}/{count}/share": 100 * float(x) for kind, x in shares.items()}
        multitask = models.others["multitask"]
        made = methods.ablations(sizes)(some.base, thetas, multitask)
        for name, direction in made.items():
            if name != methods.ORACLE or count == counts[-1]:
                trunk = judged.best(some.base, direction).trunk
                found[f"{name}/{count}"] = judged.normalised(trunk)
        if count == counts[-1]:
            found[f"multitask/{count}"] = judged.normalised(multitask)
    return found


@functools.cache
def _dropped(rescale: Any) -> Any:
    @jax.jit
    def trunks(base: PyTree, theta: PyTree, key: jax.Array) -> PyTree:
        vector = task_vector(base, theta)

        def at(drop: jax.Array) -> PyTree:
            kept = dare(vector, key, drop=drop, rescale=rescale)
            return add_task_vectors(base, [kept], scale=1.0)

        return jax.lax.map(at, jnp.asarray(DROPS))

    return trunks


@jax.jit
def _between(a: PyTree, b: PyTree) -> dict[str, PyTree]:
    shares = jnp.asarray(SHARES)
    return {
        "linear": jax.lax.map(lambda t: average([a, b], jnp.stack([1 - t, t])), shares),
        "SLERP": jax.lax.map(lambda t: slerp(a, b, t), shares),
    }


def swept(benchmark: Benchmark, negated: float, seed: int, models: Models) -> dict[str, np.ndarray]:
    """Normalised accuracies along what a method's number does.

    "scale": [1 + SCALES], from 0 on, of task arithmetic of all specialists. "rescaled", "not
    rescaled": [DROPS] of single specialists under DARE, a mean over tasks. "linear", "SLERP":
    [SHARES] between the first two specialists. "negated": [T, T] points of test accuracy that the
    pretrained model loses on the column's task when the row's is subtracted.
    """
    judged = judge(benchmark, models)
    thetas = list(models.specialists.values())
    vectors = [task_vector(models.base, theta) for theta in thetas]

    def share(reached: np.ndarray, own: np.ndarray) -> np.ndarray:
        """[S, T] accuracies as [S] normalised ones."""
        return (100 * reached / own).mean(-1)

    total = methods.total(vectors)
    along = measuring.along(benchmark, models.head, models.base, total, (0.0, *SCALES), judged.test)
    found = {"scale": share(along, judged.own)}

    for name, rescale in RESCALES.items():
        curves = []
        for n, theta in enumerate(thetas):
            key = jax.random.fold_in(jax.random.key(seed), n)
            test = measuring.Examples(*(x[n : n + 1] for x in judged.test))
            reached = measuring.accuracies(
                benchmark, models.head, _dropped(rescale)(models.base, theta, key), test
            )
            curves.append(share(reached, judged.own[n : n + 1]))
        found[name] = np.mean(curves, 0)

    pair = judge(benchmark, models.first(2))
    for name, trunks in _between(thetas[0], thetas[1]).items():
        reached = measuring.accuracies(benchmark, models.head, trunks, pair.test)
        found[name] = share(reached, pair.own)

    before = judged.reached(models.base)
    after = [judged.reached(negate(models.base, theta, scale=negated)) for theta in thetas]
    found["negated"] = before - np.stack(after)
    return found


def mean_negation(rows: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """(points lost on the subtracted task, on the others), means over subtracted tasks."""
    lost = rows["negated"]
    own = np.eye(len(lost), dtype=bool)
    return float(lost[own].mean()), float(lost[~own].mean())
