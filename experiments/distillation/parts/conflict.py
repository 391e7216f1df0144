"""Whether two losses of a student pull the same way, along a training of several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.launch import evaluation
from kd_jax.launch.sharding import batch_ways
from kd_jax.launch.stages import Evaluation, Program, Training, mesh_of
from kd_jax.trees import Rule, partition
from kd_jax.types import Context, Objective, Output, Term

PyTree = Any


def along(
    training: Training, objective: Objective, *, classifier: Rule, every: int, batches: int
) -> Evaluation:
    """{"classifier": [S], "backbone": [S]}: cos(g_ce, g_kd) of each student, and "mean_..." of all.

    g_ce, g_kd: gradients of the terms "ce" and "kd" of the objective, in training mode, on a
    student's first batches, the same each time; the mean over batches. classifier: the rule of
    its paths in the model's parameters; the backbone is the rest. 0 where one of the two has no
    gradient, as in the classifier of labels where the other loss has a head of its own.
    """
    # One student's program for all: it compiles in a fraction of the time of S side by side.
    step = _cosines(objective, classifier)
    students = jax.tree.leaves(training.batch)[0].shape[1]

    def examples(student: int) -> dict[str, np.ndarray]:
        rows = slice(0, training.batch_size)
        drawn = [training.batches(number, rows) for number in range(batches)]
        return {name: np.concatenate([x[name][:, student] for x in drawn]) for name in drawn[0]}

    def run(params, carry, frozen) -> Mapping[str, float | np.ndarray]:
        given = [examples(student) for student in range(students)]
        found = _each(step, params, carry, given, training.batch_size)
        return found | {f"mean_{name}": float(x.mean()) for name, x in found.items()}

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        batch = {
            name: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype)
            for name, x in training.batch.items()
        }
        which = {"student": jax.ShapeDtypeStruct((), np.int32)}
        mesh = mesh_of(params)
        return {"cosines": evaluation.program(step, params, carry, which, batch, mesh=mesh)}

    return Evaluation("gradients", every, run, plan)


def whole(
    objective: Objective, params: PyTree, examples: Mapping[str, np.ndarray], *, classifier: Rule
) -> dict[str, np.ndarray]:
    """{"classifier": [S], "backbone": [S]} as `along` has them, of all examples as one batch.

    Where the sum of both losses is at rest, their gradients are opposite: the cosine is -1. params:
    {"model": ..., "aux": ...} of students without state.
    """
    mesh, count = mesh_of(params), len(examples["targets"])
    ways = batch_ways(mesh)
    students = jax.tree.leaves(params)[0].shape[0]
    step = _cosines(objective, classifier)
    return _each(step, params, {}, [examples] * students, -(-count // ways) * ways)


def _each(
    step: evaluation.EvalStep,
    params: PyTree,
    carry: PyTree,
    examples: Sequence[Mapping[str, np.ndarray]],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """The step's values of every student on its own examples."""

    def one(student: int) -> dict[str, float]:
        which = {"student": np.int32(student)}
        return evaluation.evaluate(
            step, params, carry, which, examples[student],
            batch_size=batch_size, mesh=mesh_of(params),
        )[0]  # fmt: skip

    found = [one(student) for student in range(len(examples))]
    return {name: np.array([x[name] for x in found]) for name in ("classifier", "backbone")}


def _cosines(objective: Objective, classifier: Rule) -> evaluation.EvalStep:
    def cosines(params: PyTree, carry: PyTree, frozen: PyTree, batch: Any) -> Output:
        params, carry = jax.tree.map(lambda x: x[frozen["student"]], (params, carry))
        ctx = Context(jax.random.key(0), jnp.zeros((), jnp.int32))

        def losses(model: PyTree) -> tuple[jax.Array, jax.Array]:
            terms = objective.loss({**params, "model": model}, carry, {}, batch, ctx).terms
            return terms["ce"].value, terms["kd"].value

        _, pull = jax.vjp(losses, params["model"])
        sides = [partition(pull(one)[0], classifier) for one in ((1.0, 0.0), (0.0, 1.0))]
        found = [cosine(*pair) for pair in zip(*sides, strict=True)]
        named = zip(("classifier", "backbone"), found, strict=True)
        return Output({}, {name: Term(x, jnp.float32(1)) for name, x in named})

    return cosines


def cosine(first: PyTree, second: PyTree) -> jax.Array:
    """Of two trees as vectors; 0 where one of them is 0."""

    def inner(a: PyTree, b: PyTree) -> jax.Array:
        return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: (x * y).sum(), a, b))

    size = jnp.sqrt(inner(first, first) * inner(second, second))
    return jnp.where(size > 0, inner(first, second) / jnp.where(size > 0, size, 1.0), 0.0)
