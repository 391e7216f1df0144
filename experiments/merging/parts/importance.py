"""What Fisher merging and RegMean ask of a specialist: one pass over some of its images."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from experiments.merging.common.tasks import Benchmark
from kd_jax.attribution.fisher import diagonal_fisher
from kd_jax.attribution.grams import gram_matrices
from kd_jax.attribution.means import Statistic, mean_of, mean_over_examples
from kd_jax.types import Batch, Frozen, ModelOutput, Params

PyTree = Any
TOGETHER = 16  # examples whose gradients for every class are held at once


def fisher(benchmark: Benchmark, head: PyTree, trunk: PyTree, images: Batch) -> PyTree:
    """The exact diagonal Fisher of a trunk; the number of images is a multiple of TOGETHER."""
    return _fisher(benchmark, len(images["weights"]) // TOGETHER)(trunk, {"head": head}, images)


def grams(
    benchmark: Benchmark, head: PyTree, trunk: PyTree, images: Batch
) -> Mapping[str, jax.Array]:
    """The Gram matrices of the inputs of a perceptron's trunk, {path of a kernel: [in, in]}."""
    return _grams(benchmark, len(trunk))(trunk, {"head": head}, images)


@functools.cache
def _fisher(benchmark: Benchmark, microbatches: int) -> Any:
    def logits(params: Params, frozen: Frozen, batch: Batch) -> jax.Array:
        return _output(benchmark, params, frozen, batch, ()).head.logits()

    return _passed(diagonal_fisher(logits), microbatches)


@functools.cache
def _grams(benchmark: Benchmark, layers: int) -> Any:
    taps = ("inputs", *(f"hidden_{i}" for i in range(layers - 1)))

    def features(params: Params, frozen: Frozen, batch: Batch) -> Mapping[str, jax.Array]:
        found = _output(benchmark, params, frozen, batch, taps).taps
        return {f"layer_{i}/kernel": found[tap] for i, tap in enumerate(taps)}

    return _passed(gram_matrices(features), 1)


def _output(
    benchmark: Benchmark, params: Params, frozen: Frozen, batch: Batch, taps: tuple[str, ...]
) -> ModelOutput:
    whole = {**params["model"], benchmark.head: frozen["head"]}
    return benchmark.model.apply(whole, batch, taps=taps)


def _passed(statistic: Statistic, microbatches: int) -> Any:
    """A jitted (trunk, frozen, images) -> the mean of the statistic over the images."""
    step = mean_over_examples(statistic, microbatches=microbatches)

    @jax.jit
    def over(trunk: PyTree, frozen: Frozen, images: Batch) -> PyTree:
        state = step.init(jax.random.key(0), trunk, frozen, images)
        return mean_of(step(state, frozen, images)[0], frozen)

    return over
