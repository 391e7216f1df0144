"""Which task an image is of, from the features of a shared model, and models weighed by it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.merging.common.tasks import Benchmark, Examples
from kd_jax.data import order
from kd_jax.losses.classification import accuracy
from kd_jax.merging.twin import Twins, attach
from kd_jax.models.mlp import MLPConfig, mlp
from kd_jax.models.parts import LowRank
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.steps import make_train_step
from kd_jax.types import Model

PyTree = Any
TOGETHER = 64  # examples that have their own weights at once


class Learning(NamedTuple):
    """How a router is trained: Adam at `rate`, passes over all images in batches, which pass is
    kept is decided on validation images."""

    rate: float
    passes: int
    batch_size: int


def features(
    benchmark: Benchmark, head: PyTree, shared: PyTree, inputs: np.ndarray | jax.Array
) -> jax.Array:
    """The last hidden layer [T, N, D] of the shared model, a perceptron, for inputs [T, N, ...]."""
    return _features(benchmark, len(shared))({**shared, benchmark.head: head}, inputs)


@functools.cache
def _features(benchmark: Benchmark, layers: int) -> Any:
    tap = f"hidden_{layers - 1}"

    @jax.jit
    def read(whole: PyTree, inputs: jax.Array) -> jax.Array:
        def of_task(x: jax.Array) -> jax.Array:
            return benchmark.model.apply(whole, {"inputs": x}, taps=(tap,)).taps[tap]

        return jax.lax.map(of_task, inputs)

    return read


def router(width: int, tasks: int) -> Model:
    """Features [B, 1, 1, D] to logits over tasks: one hidden layer of 2 D, as in the paper's."""
    return mlp(MLPConfig(inputs=width, widths=(2 * width,), classes=tasks))


def trained(train: jax.Array, validation: jax.Array, learning: Learning, *, seed: int) -> PyTree:
    """The weights of a router of features [T, N, D], from the best pass on validation features."""
    tasks, each, width = train.shape
    total, size = tasks * each, min(learning.batch_size, tasks * each)
    steps = total // size
    # Every pass sees each image once, but for what is left of a batch.
    positions = np.arange(learning.passes)[:, None] * total + np.arange(steps * size)
    rows = order.order(seed, "router", total, positions.ravel())
    rows = rows.reshape(learning.passes, steps, size)
    start = router(width, tasks).init(jax.random.key(seed))
    return _trainer(width, tasks, learning.rate)(start, _batch(train), _batch(validation), rows)


def _batch(found: jax.Array) -> dict[str, jax.Array]:
    tasks, each, width = found.shape
    return {
        "inputs": found.reshape(-1, 1, 1, width),
        "targets": jnp.repeat(jnp.arange(tasks), each),
        "weights": jnp.ones(tasks * each),
    }


@functools.cache  # one compilation for all seeds
def _trainer(width: int, tasks: int, rate: float) -> Any:
    model = router(width, tasks)
    objective = supervise(model, {"ce": label_cross_entropy})
    step = make_train_step(objective, optax.adam(rate))

    @jax.jit
    def run(start: PyTree, train: Any, validation: Any, rows: jax.Array) -> PyTree:
        def one(state: Any, chosen: jax.Array) -> tuple[Any, None]:
            return step(state, {}, jax.tree.map(lambda x: x[chosen], train))[0], None

        def one_pass(carry: Any, chosen: jax.Array) -> tuple[Any, None]:
            state, best, most = carry
            state, _ = jax.lax.scan(one, state, chosen)
            logits = model.apply(state.params["model"], validation).head.logits()
            reached = accuracy(logits, validation["targets"]).mean()
            better = reached > most
            best = jax.tree.map(lambda b, n: jnp.where(better, n, b), best, state.params["model"])
            return (state, best, jnp.maximum(reached, most)), None

        first = jax.tree.map(lambda x: x[rows[0, 0]], train)
        state = step.init(jax.random.key(0), start, {}, first)
        return jax.lax.scan(one_pass, (state, start, jnp.float32(-1)), rows)[0][1]

    return run


def weights(routing: PyTree, found: jax.Array) -> jax.Array:
    """softmax of the router's logits, [T, N, T] for features [T, N, D]."""
    tasks, each, width = found.shape
    logits = router(width, tasks).apply(routing, _batch(found)).head.logits()
    return jax.nn.softmax(logits).reshape(tasks, each, tasks)


def routed(
    benchmark: Benchmark, head: PyTree, twins: Twins, each: jax.Array, examples: Examples
) -> np.ndarray:
    """[T] per cent right where every example has a model of its own, by its weights [T, N, T]."""
    found = _routed(benchmark)(head, twins.shared, twins.exclusive, each, examples)
    return np.asarray(found, np.float64)


@functools.cache
def _routed(benchmark: Benchmark) -> Any:
    @jax.jit
    def run(
        head: PyTree,
        shared: PyTree,
        exclusive: Sequence[Any],
        each: jax.Array,
        examples: Examples,
    ) -> jax.Array:
        def one(example: Mapping[str, jax.Array]) -> jax.Array:
            trunk = attach(shared, exclusive, example["weights"], low_rank=LowRank)
            whole = {**trunk, benchmark.head: head}
            inputs = {"inputs": example["inputs"][None]}
            return benchmark.model.apply(whole, inputs).head.logits()[0].argmax()

        tasks, count = examples.targets.shape
        flat = {"weights": each, "inputs": jnp.asarray(examples.inputs)}
        flat = jax.tree.map(lambda x: x.reshape(tasks * count, *x.shape[2:]), flat)
        # Mapped over examples, TOGETHER at a time.
        guesses = jax.lax.map(one, flat, batch_size=TOGETHER).reshape(tasks, count)
        return 100 * (guesses == examples.targets).mean(-1)

    return run
