"""The fit loop against a hand-written jitted loop fed the same on-device batches.

The limit is 50 µs a step more, with the lines that a run writes. Two steps: one that does next to
nothing, where all of the loop's own work shows, and a small network, where the device's work hides
some of it.
"""

import contextlib
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import Row
from kd_jax.launch.goodput import Events
from kd_jax.launch.loop import Hook, fit, jit_step
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import batch_sharding, shardings_of
from kd_jax.launch.weights import abstract_state, from_init, init_state
from kd_jax.launch.writers import Jsonl
from kd_jax.steps import make_train_step
from kd_jax.types import Objective, Output, TrainState, TrainStep, weighted_sum

BATCH, STEPS, PIECES = 64, 200, 60


def rows() -> list[Row]:
    names = (("a near-empty step", _empty()), ("a small network", _network()))
    return [Row(f"fit loop, {name}", *_measure(step)) for name, step in names]


def _empty() -> TrainStep:
    def init(key: jax.Array, params: Any, frozen: Any, batch: Any) -> TrainState:
        return TrainState(jnp.int32(0), {"model": params, "aux": {}}, (), (), key)

    def apply(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict]:
        return state._replace(step=state.step + 1), {"loss": batch["inputs"][0, 0]}

    return TrainStep(init, apply)


def _network() -> TrainStep:
    def loss(params: Any, carry: Any, frozen: Any, batch: Any, ctx: Any) -> Output:
        hidden = jnp.tanh(batch["inputs"] @ params["model"]["first"])
        error = (hidden @ params["model"]["second"] - 1.0) ** 2
        return Output({"error": weighted_sum(error.mean(-1), batch["weights"])})

    objective = Objective(lambda key, params, frozen, batch: ({}, {}), loss)
    return make_train_step(objective, optax.adamw(1e-3))


def _measure(step: TrainStep) -> tuple[float, float]:
    """Microseconds a step in the fit loop and in the plain one."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    weights = from_init(lambda: {"first": jnp.full((64, 128), 0.1), "second": jnp.ones((128, 10))})
    batch = {"inputs": jnp.ones((BATCH, 64)), "weights": jnp.ones(BATCH)}
    batch = jax.device_put(batch, batch_sharding(mesh))
    abstract = abstract_state(step, weights, {}, batch, rules=[(".*", None)], mesh=mesh)
    shardings = shardings_of(abstract)

    def start() -> TrainState:
        return init_state(step, weights, {}, batch, jax.random.key(0), abstract)

    run = jit_step(step, shardings, mesh)
    state, by_hand = start(), [time.perf_counter()]
    for k in range(PIECES * STEPS):
        state, _ = run(state, {}, batch)
        if (k + 1) % STEPS == 0:
            jax.block_until_ready(state)
            by_hand.append(time.perf_counter())

    # Before a hook the loop waits for the device, as above.
    stamps: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Jsonl(Path(folder) / "metrics.jsonl")) as writer,
        contextlib.closing(Events(Path(folder) / "events.jsonl")) as events,
    ):
        fit(
            step,
            start(),
            {},
            lambda draw, rows: batch,
            steps=PIECES * STEPS,
            mesh=mesh,
            shardings=shardings,
            batch_size=BATCH,
            hooks=[Hook(STEPS, lambda k, state, frozen: stamps.append(time.perf_counter()))],
            writer=writer,
            flops=1e6,
            peak=1e12,
            events=events,
        )
    return _least(stamps), _least(by_hand)


def _least(stamps: list[float]) -> float:
    """Of many short pieces: other work on the machine spares some of them."""
    return min(b - a for a, b in itertools.pairwise(stamps)) / STEPS * 1e6
