"""Soups in fashion_merge: several fine-tunings of one model for one task, averaged."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.merging.common.measuring import accuracy
from experiments.merging.common.tasks import Benchmark, Examples
from kd_jax.merging.average import average, greedy_soup
from kd_jax.merging.model_stock import model_stock

PyTree = Any
Member = tuple[float, int]  # factor of the rate, order of images


def members(factors: Sequence[float], orders: int) -> dict[str, Member]:
    """{name: member} of a sweep: every factor of the rate with every order of images."""
    return {
        f"member_{i}_{order}": (factor, order)
        for i, factor in enumerate(factors)
        for order in range(orders)
    }


class Sets(NamedTuple):
    """Of one task, [1, N]: validation, test and test images with noise."""

    validation: Examples
    clean: Examples
    noisy: Examples


def noisy(test: Examples, deviation: float) -> Examples:
    """With Gaussian noise on every pixel; deviation: a part of the range of pixels."""
    x = np.asarray(test.inputs)
    noise = np.random.default_rng(0).normal(0, 255 * deviation, x.shape)
    return Examples((x + noise).clip(0, 255).astype(np.uint8), test.targets)


def measured(
    benchmark: Benchmark,
    head: PyTree,
    base: PyTree,
    sweep: Mapping[Member, PyTree],
    others: Sequence[tuple[PyTree, PyTree]],
    sets: Sets,
) -> dict[str, float]:
    """{"model/clean" and "model/noisy": test accuracy}, and "included": models in the greedy soup.

    sweep: trunks; model stock takes those of factor 1, the config's rate. others: two specialists
    of the task from different initial weights, (trunk, head).
    """

    def reached(trunk: PyTree, examples: Examples, own: PyTree = head) -> float:
        return float(accuracy(benchmark, own, trunk, examples)[0])

    models = list(sweep.values())
    validated = [reached(model, sets.validation) for model in models]
    greedy, included = greedy_soup(models, lambda model: reached(model, sets.validation))
    pair = [model for (factor, _), model in sweep.items() if factor == 1.0]
    trunks = {
        "pretrained": base,
        "best single": models[int(np.argmax(validated))],
        "uniform soup": average(models),
        "greedy soup": greedy,
        "mean of two": average(pair),
        "model stock": model_stock(base, pair),
    }
    found = {"included": float(len(included))}
    for kind in ("clean", "noisy"):
        examples = getattr(sets, kind)
        found |= {f"{name}/{kind}": reached(x, examples) for name, x in trunks.items()}
        found[f"one of two/{kind}"] = float(np.mean([reached(x, examples) for x in pair]))
        apart = [reached(trunk, examples, own) for trunk, own in others]
        found[f"one of other starts/{kind}"] = float(np.mean(apart))
        mixed = average([trunk for trunk, _ in others]), average([own for _, own in others])
        found[f"mean of other starts/{kind}"] = reached(mixed[0], examples, mixed[1])
    return found
