"""Accuracies of merged trunks, and the choice of a scale on validation images."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.common.tasks import Benchmark, Examples, examples
from kd_jax.launch.stages import Program
from kd_jax.merging.arithmetic import add_task_vectors

PyTree = Any
SCALES = tuple(i / 20 for i in range(1, 25))  # tried where a scale is chosen on validation images


def correct(benchmark: Benchmark, head: PyTree, trunk: PyTree, sets: Examples) -> jax.Array:
    """[T, N] whether the model of a trunk and a head is right, for examples of T tasks.

    Jittable; tasks one after the other, so that memory is that of one.
    """
    params = {**trunk, benchmark.head: head}

    def of_task(task: Examples) -> jax.Array:
        logits = benchmark.model.apply(params, {"inputs": task.inputs}).head.logits()
        return logits.argmax(-1) == task.targets

    return jax.lax.map(of_task, Examples(*map(jnp.asarray, sets)))


def accuracy(benchmark: Benchmark, head: PyTree, trunk: PyTree, sets: Examples) -> np.ndarray:
    """[T] per cent."""
    return np.asarray(_accuracy(benchmark, head, trunk, sets), np.float64)


def accuracies(benchmark: Benchmark, head: PyTree, trunks: PyTree, sets: Examples) -> np.ndarray:
    """[S, T] per cent of S trunks, leaves [S, ...]."""
    return np.asarray(_accuracies(benchmark, head, trunks, sets), np.float64)


def program(
    benchmark: Benchmark, head: PyTree, trunk: PyTree, tasks: int, images: int = 512
) -> Program:
    """What `accuracy` compiles, for a plan: so many images of each task."""
    shape = (tasks, images, benchmark.side, benchmark.side, 1)
    shapes = Examples(
        jax.ShapeDtypeStruct(shape, jnp.uint8), jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    )
    return Program(jax.jit(functools.partial(_per_cent, benchmark)), (head, trunk, shapes))


def _per_cent(benchmark: Benchmark, head: PyTree, trunk: PyTree, sets: Examples) -> jax.Array:
    return 100 * correct(benchmark, head, trunk, sets).mean(-1)


_accuracy = jax.jit(_per_cent, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _accuracies(benchmark: Benchmark, head: PyTree, trunks: PyTree, sets: Examples) -> jax.Array:
    return jax.lax.map(lambda trunk: _per_cent(benchmark, head, trunk, sets), trunks)


@functools.partial(jax.jit, static_argnums=0)
def _along(
    benchmark: Benchmark,
    head: PyTree,
    base: PyTree,
    direction: PyTree,
    scales: jax.Array,
    sets: Examples,
) -> jax.Array:
    def at(scale: jax.Array) -> jax.Array:
        trunk = add_task_vectors(base, [direction], scale=scale)
        return _per_cent(benchmark, head, trunk, sets)

    return jax.lax.map(at, scales)


def along(
    benchmark: Benchmark,
    head: PyTree,
    base: PyTree,
    direction: PyTree,
    scales: Sequence[float],
    sets: Examples,
) -> np.ndarray:
    """[S, T] per cent of base + scale * direction, for S scales."""
    found = _along(benchmark, head, base, direction, jnp.asarray(scales), sets)
    return np.asarray(found, np.float64)


class Chosen(NamedTuple):
    """scale: of those tried, the first with the highest mean accuracy; trunk: the one it makes."""

    scale: float
    trunk: PyTree


def best_scale(
    benchmark: Benchmark,
    head: PyTree,
    base: PyTree,
    direction: PyTree,
    validation: Examples,
    scales: Sequence[float] = SCALES,
) -> Chosen:
    """The scale of a direction from the base that is best over the tasks' validation images."""
    found = along(benchmark, head, base, direction, scales, validation).mean(-1)
    scale = scales[int(found.argmax())]
    return Chosen(scale, add_task_vectors(base, [direction], scale=scale))


def normalised(reached: np.ndarray, own: np.ndarray) -> float:
    """Per cent of the specialists' accuracies that is reached, a mean over tasks. Both: [T]."""
    return float(np.mean(100 * reached / own))


class Judge(NamedTuple):
    """What merged trunks of T tasks are measured on. own: [T], the specialists on the test set."""

    benchmark: Benchmark
    head: PyTree
    validation: Examples
    test: Examples
    own: np.ndarray

    def reached(self, trunk: PyTree) -> np.ndarray:
        """[T] test accuracies, per cent."""
        return accuracy(self.benchmark, self.head, trunk, self.test)

    def normalised(self, trunk: PyTree) -> float:
        return normalised(self.reached(trunk), self.own)

    def validated(self, trunk: PyTree) -> float:
        """The mean validation accuracy over tasks, per cent."""
        return float(accuracy(self.benchmark, self.head, trunk, self.validation).mean())

    def along(self, base: PyTree, direction: PyTree) -> np.ndarray:
        """[SCALES, T] validation accuracies of base + scale * direction, per cent."""
        return along(self.benchmark, self.head, base, direction, SCALES, self.validation)

    def best(self, base: PyTree, direction: PyTree) -> Chosen:
        return best_scale(self.benchmark, self.head, base, direction, self.validation)


def judge(benchmark: Benchmark, head: PyTree, specialists: Mapping[str, PyTree]) -> Judge:
    """Of the tasks of these specialists, in their order."""
    tasks = tuple(specialists)
    validation, test = (examples(benchmark, tasks, split) for split in ("validation", "test"))
    own = [
        accuracy(benchmark, head, trunk, test)[i] for i, trunk in enumerate(specialists.values())
    ]
    return Judge(benchmark, head, validation, test, np.array(own))
