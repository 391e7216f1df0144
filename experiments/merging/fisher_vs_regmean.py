"""Merges that look at data: averages by Fisher information, RegMean and AdaMerging.

Papers: Matena and Raffel 2022 (arXiv 2111.09832), Jin, Ren, Preotiuc-Pietro, Cheng 2023
(arXiv 2212.09849), Yang et al. 2024 (arXiv 2310.02575). Specialists of one task each, fine-tuned
from one pretrained perceptron with its head frozen, are merged without labels: with the exact
diagonal Fisher information of each, with the Gram matrices of the inputs of its layers, and with
coefficients of task vectors that make the merged model's predictions certain, by task or by layer.
Normalised accuracy is the merged model's over the specialist's, a mean over the tasks.

AdaMerging is transductive as in its paper: it learns from the test images, without their labels.
The same on as many training images is a merge of its own here, as are Fisher's weights chosen on
validation images.

Claim: average < Fisher < RegMean, and coefficients by layer are about as good as RegMean or better.

    python -m experiments.merging.fisher_vs_regmean smoke     # two tasks, two seeds: 12 s
    python -m experiments.merging.fisher_vs_regmean laptop    # four tasks, five seeds: 2 minutes

Measured at `laptop` (two CPU cores, 2026-11): 79 (average), 89 (Fisher) and 93 % (RegMean) of the
specialists; Fisher is above the plain average of pairs at every weight. AdaMerging does not gain
here: 74 % by layer and by task, no more than task arithmetic where it starts.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.common import measuring, specialists
from experiments.merging.common.config import Common
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import changed, examples
from experiments.merging.parts import fisher_report, importance, pairs
from experiments.merging.parts.adaptation import learned
from experiments.merging.parts.pairs import fisher_merges
from kd_jax.data import arrays
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_positive
from kd_jax.launch.stages import Stage
from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.average import average
from kd_jax.merging.fisher import weights_to_try
from kd_jax.merging.regmean import regmean
from kd_jax.merging.ties import disjoint_sum, ties

CLAIMS = fisher_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    fisher_images: int = 1248
    """Training images of a task whose gradients make its Fisher information."""
    samples: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Training images of a task that make its Gram matrices; RegMean proper has the last."""
    off_diagonals: tuple[float, ...] = (0.0, 0.9, 1.0)
    """Factors of the Gram matrices' off-diagonal entries."""
    off_diagonal: float = 0.9
    """The one of RegMean proper."""
    ridge: float = 1e-4
    """RegMean's ridge, a part of the mean second moment."""
    scale: float = 0.3
    """Coefficient of task arithmetic and TIES, and where AdaMerging starts."""
    density: float = 0.2
    """The part of each task vector that TIES keeps."""
    adapt_steps: int = 1000
    """Steps of AdaMerging."""
    adapt_rate: float = 1e-3
    """Its learning rate, of Adam."""
    adapt_batch: int = 16
    """Images of each task in a step."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "samples", "scale", "adapt_steps", "adapt_rate", "adapt_batch")
        if self.fisher_images < 1 or self.fisher_images % importance.TOGETHER:
            raise ValueError(
                f"fisher_images: got {self.fisher_images}, takes a multiple of "
                f"{importance.TOGETHER}"
            )
        if self.off_diagonal not in self.off_diagonals:
            raise ValueError(
                f"off_diagonal: got {self.off_diagonal}, takes one of off_diagonals, "
                f"{' '.join(map(str, self.off_diagonals))}"
            )
        if not 0 < self.density <= 1:
            raise ValueError(f"density: got {self.density}, takes a number in (0, 1]")


PRESETS = {
    "smoke": Config(
        tasks=2,
        seeds=2,
        widths=(64, 64),
        steps=100,
        fisher_images=32,
        samples=(8, 64),
        adapt_steps=100,
    ),
    "laptop": Config(tasks=4, seed=10),
}


def stages(config: Config) -> tuple[Stage, ...]:
    merging = specialists.merging(config, "merged", functools.partial(_merged, config))
    return specialists.stages(config) + merging


def _merged(config: Config, seed: int, models: Models) -> Mapping[str, Any]:
    benchmark, head, base = config.benchmark, models.head, models.base
    names, thetas = tuple(models.specialists), list(models.specialists.values())
    judged = measuring.judge(benchmark, head, models.specialists)
    test, own = judged.test, judged.own
    fishers = [
        importance.fisher(
            benchmark, head, theta, changed(benchmark, task, "train", slice(config.fisher_images))
        )
        for task, theta in models.specialists.items()
    ]
    adapted = functools.partial(
        learned,
        benchmark,
        head,
        base,
        thetas,
        steps=config.adapt_steps,
        rate=config.adapt_rate,
        batch_size=config.adapt_batch,
        seed=seed,
        start=config.scale,
    )
    # As many as the test images: what differs is that they were trained on.
    train = examples(benchmark, names, "train", slice(test.targets.shape[1]))
    trunks = {
        "pretrained": base,
        **_plain(config.scale, config.density)(base, thetas),
        **_by_fisher(seed, thetas, fishers, judged),
        **_by_grams(config, models),
        "AdaMerging, by task": adapted(test.inputs, layerwise=False)[0],
        "AdaMerging, by layer": adapted(test.inputs, layerwise=True)[0],
        "AdaMerging, by layer, training images": adapted(train.inputs, layerwise=True)[0],
    }
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trunks.values())
    reached = measuring.accuracies(benchmark, head, stacked, test)
    values = {f"specialist/{task}": x for task, x in zip(names, own.tolist(), strict=True)}
    for name, found in zip(trunks, reached, strict=True):
        values[f"{name}/normalised"] = measuring.normalised(found, own)
        values |= {f"{name}/{task}": x for task, x in zip(names, found.tolist(), strict=True)}
    return values | pairs.measured(models, fishers, judged)


@functools.cache  # as below: one program for all seeds
def _plain(scale: float, density: float) -> Any:
    """A jitted (base, models) -> the merges that look at no data."""

    def merges(base: Any, models: Any) -> dict[str, Any]:
        return {
            "average": average(models),
            "task arithmetic": task_arithmetic(base, models, scale=scale),
            "TIES": ties(base, models, density=density, scale=scale, merge=disjoint_sum),
        }

    return jax.jit(merges)


def _by_fisher(
    seed: int, thetas: list[Any], fishers: list[Any], judged: measuring.Judge
) -> dict[str, Any]:
    """Fisher merges with uniform weights and with those that are best on validation images."""
    weights = weights_to_try(jax.random.key(seed), len(thetas))
    tried = fisher_merges(thetas, fishers, weights)
    found = measuring.accuracies(judged.benchmark, judged.head, tried, judged.validation)
    best = int(found.mean(-1).argmax())
    uniform = fisher_merges(thetas, fishers, jnp.ones((1, len(thetas))))
    return {
        "Fisher": jax.tree.map(lambda x: x[0], uniform),
        "Fisher, validated": jax.tree.map(lambda x: x[best], tried),
    }


def _by_grams(config: Config, models: Models) -> dict[str, Any]:
    """RegMean for every number of samples and factor of the off-diagonals."""
    most = max(config.samples)
    found = {}
    for count in config.samples:
        seen = [
            importance.grams(
                config.benchmark, models.head, theta, _first(config, task, count, most)
            )
            for task, theta in models.specialists.items()
        ]
        for factor in config.off_diagonals:
            merged = _regmean(factor, config.ridge)(list(models.specialists.values()), seen)
            found[f"RegMean, {count} at {factor}"] = merged
    return found


def _first(config: Config, task: str, count: int, most: int) -> Mapping[str, np.ndarray]:
    """`most` training images, the first `count` with a weight: one compiled pass for all."""
    images = changed(config.benchmark, task, "train", slice(most))
    weights = (np.arange(arrays.size(images)) < count).astype(np.float32)
    return images | {"weights": weights}


@functools.cache
def _regmean(off_diagonal: float, ridge: float) -> Any:
    return jax.jit(functools.partial(regmean, off_diagonal=off_diagonal, ridge=ridge))


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = [artefacts[f"merged_{seed}"] for seed in config.repetitions]
    curves = {
        factor: [f"RegMean, {count} at {factor}" for count in config.samples]
        for factor in config.off_diagonals
    }
    proper = f"RegMean, {config.samples[-1]} at {config.off_diagonal}"
    return fisher_report.results(config, found, curves, config.samples, proper, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
