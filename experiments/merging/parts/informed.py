"""Merges that look at data, in digits_merge: Fisher, RegMean, AdaMerging and Twin-Merging."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.merging.common import measuring
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import Benchmark, changed, examples
from experiments.merging.parts import importance, router
from experiments.merging.parts.adaptation import learned
from kd_jax.merging.fisher import fisher_merge
from kd_jax.merging.regmean import regmean
from kd_jax.merging.twin import Twins, twins

PyTree = Any
NAMES = ("Fisher", "RegMean", "AdaMerging", "Twin-Merging")
IMAGES = slice(256)  # training images of a task that Fisher and RegMean see


class Learning(NamedTuple):
    """How AdaMerging learns: steps of Adam at `rate`; and passes of Twin-Merging's router over the
    training images."""

    steps: int
    rate: float
    passes: int


def measured(
    benchmark: Benchmark, counts: range, learning: Learning, seed: int, models: Models
) -> dict[str, Any]:
    """As `measures.merged`: {"method/T/unsearched": ...} and rows "method/tasks".

    AdaMerging learns a coefficient for each task and leaf from validation images without their
    labels. Twin-Merging has exclusive parts of a tenth of the rank, and a model for every image.
    """
    head, base = models.head, models.base
    seen = {task: changed(benchmark, task, "train", IMAGES) for task in models.specialists}
    fishers, grams = (
        [f(benchmark, head, theta, seen[task]) for task, theta in models.specialists.items()]
        for f in (importance.fisher, importance.grams)
    )
    found: dict[str, Any] = {}
    for count in counts:
        some = models.first(count)
        thetas = list(some.specialists.values())
        judged = measuring.judge(benchmark, head, some.specialists)
        adapted, _ = learned(
            benchmark, head, base, thetas, np.asarray(judged.validation.inputs), layerwise=True,
            steps=learning.steps, rate=learning.rate, batch_size=16, seed=seed,
        )  # fmt: skip
        reached = {
            "Fisher": judged.reached(_fisher(thetas, fishers[:count])),
            "RegMean": judged.reached(_regmean(thetas, grams[:count])),
            "AdaMerging": judged.reached(adapted),
            "Twin-Merging": _routed(benchmark, some, judged, learning.passes, seed),
        }
        for name, accuracies in reached.items():
            found[f"{name}/{count}/unsearched"] = measuring.normalised(accuracies, judged.own)
            if count == counts[-1]:
                found[f"{name}/tasks"] = accuracies
    return found


# All tasks are alike: there is no target to favour.
_fisher = jax.jit(functools.partial(fisher_merge, favour_target=False))
_regmean = jax.jit(functools.partial(regmean, ridge=1e-4))
_twins = jax.jit(functools.partial(twins, density=0.1))


def _routed(
    benchmark: Benchmark, models: Models, judged: measuring.Judge, passes: int, seed: int
) -> np.ndarray:
    """[T] test accuracies where every image has a model of its own."""
    tasks, head = tuple(models.specialists), models.head
    made: Twins = _twins(models.base, list(models.specialists.values()))
    train, validation, test = (
        router.features(benchmark, head, made.shared, x.inputs)
        for x in (examples(benchmark, tasks, "train"), judged.validation, judged.test)
    )
    learning = router.Learning(rate=5e-4, passes=passes, batch_size=128)
    routing = router.trained(train, validation, learning, seed=seed)
    return router.routed(benchmark, head, made, router.weights(routing, test), judged.test)
