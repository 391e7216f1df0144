"""Coefficients learned from the entropy of predictions, by task or by layer."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.merging.common.tasks import Benchmark
from kd_jax.data import order
from kd_jax.merging.adaptive import add_layerwise, layerwise_scales
from kd_jax.merging.arithmetic import add_task_vectors, task_vector
from kd_jax.objectives.adaptive import minimise_entropy
from kd_jax.steps import make_train_step
from kd_jax.types import Frozen, Params

PyTree = Any


def by_task(params: Params, frozen: Frozen) -> PyTree:
    """A policy with a coefficient a task: params["model"] is {"scale": [T]}."""
    return add_task_vectors(frozen["base"], frozen["vectors"], scale=params["model"]["scale"])


def by_layer(params: Params, frozen: Frozen) -> PyTree:
    """A policy with a coefficient a task and leaf: params["model"] is a tree of [T]."""
    return add_layerwise(frozen["base"], frozen["vectors"], params["model"])


def learned(
    benchmark: Benchmark,
    head: PyTree,
    base: PyTree,
    models: Sequence[PyTree],
    inputs: np.ndarray,
    *,
    layerwise: bool,
    steps: int,
    rate: float,
    batch_size: int,
    seed: int,
    start: float = 0.3,
) -> tuple[PyTree, PyTree]:
    """(merged trunk, coefficients) after `steps` steps of Adam on unlabelled inputs.

    inputs: [T, N, ...], of which each step sees batch_size of each task.
    """
    tasks, total = inputs.shape[:2]
    frozen = {"base": base, "models": list(models), "head": head}
    scales = (
        layerwise_scales(base, tasks, start) if layerwise else {"scale": jnp.full(tasks, start)}
    )
    positions = np.arange(steps * batch_size)
    rows = np.stack(
        [order.order(seed, f"task {i}", total, positions) for i in range(tasks)], axis=1
    )
    run = _learner(benchmark, tasks, layerwise, rate)
    return run(scales, frozen, jnp.asarray(inputs), rows.reshape(steps, batch_size, tasks))


@functools.cache  # one compilation for all seeds
def _learner(benchmark: Benchmark, tasks: int, layerwise: bool, rate: float) -> Any:
    """A jitted (coefficients, models, inputs [T, N, ...], rows int [steps, B, T]) of `learned`."""

    def whole(merged: PyTree, frozen: Frozen) -> PyTree:
        return {**merged, benchmark.head: frozen["head"]}

    names = [str(i) for i in range(tasks)]
    policy = by_layer if layerwise else by_task
    objective = minimise_entropy(benchmark.model, dict.fromkeys(names, whole), policy=policy)
    step = make_train_step(objective, optax.adam(rate))

    @jax.jit
    def run(
        start: PyTree, frozen: Frozen, inputs: jax.Array, rows: jax.Array
    ) -> tuple[PyTree, PyTree]:
        vectors = [task_vector(frozen["base"], model) for model in frozen["models"]]
        frozen = {**frozen, "vectors": vectors}

        def batch(chosen: jax.Array) -> dict[str, Any]:
            weights = jnp.ones(len(chosen))
            return {
                name: {"inputs": inputs[i][chosen[:, i]], "weights": weights}
                for i, name in enumerate(names)
            }

        def body(state: Any, chosen: jax.Array) -> tuple[Any, None]:
            return step(state, frozen, batch(chosen))[0], None

        state = step.init(jax.random.key(0), start, frozen, batch(rows[0]))
        params = jax.lax.scan(body, state, rows)[0].params
        return policy(params, frozen), params["model"]

    return run
