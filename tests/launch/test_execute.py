"""What a carried out training measures, and where its frozen weights lie."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy_experiment as toy

from kd_jax.launch import weights
from kd_jax.launch.execute import Run, carry_out
from kd_jax.launch.goodput import Events
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.planning import chips
from kd_jax.launch.stages import Training, placed
from kd_jax.models.parts import fetched
from kd_jax.steps import make_train_step
from kd_jax.types import Objective, Output, weighted_sum

ROWS, WIDTH, STEPS = 8, 4, 12
MESH = MeshConfig(data=2, fsdp=4)


def training(**changes) -> Training:
    """A kernel is fitted to what a frozen one says."""

    def loss(params, carry, frozen, batch, ctx):
        target = batch["inputs"] @ fetched(frozen["aim"])["kernel"]
        error = batch["inputs"] @ params["model"]["kernel"] - target
        return Output({"mse": weighted_sum(jnp.square(error).sum(-1))})

    def batches(step, rows):
        rng = np.random.default_rng(step)
        return {"inputs": rng.normal(size=(ROWS, WIDTH)).astype(np.float32)[rows]}

    rules = (("kernel", ("embed", None)), ("scale", (None,)))
    aim = {"kernel": np.eye(WIDTH, dtype=np.float32), "scale": np.ones(WIDTH, np.float32)}
    base = Training(
        step=make_train_step(Objective(lambda *_: ({}, {}), loss), optax.sgd(0.05)),
        weights=weights.from_arrays({"kernel": np.zeros((WIDTH, WIDTH), np.float32)}),
        frozen=weights.joined(aim=weights.from_arrays(aim)),
        frozen_rules={"aim": rules},
        batches=batches,
        batch={"inputs": jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32)},
        batch_size=ROWS,
        steps=STEPS,
        rules=rules[:1],
    )
    return base._replace(**changes)


def execute(folder, work):
    with contextlib.closing(Events(folder / "events.jsonl")) as events:
        run = Run(folder, make_mesh(MESH), toy.Config(), "t", lambda _: None, events)
        return carry_out(run, "t", work, "0", {})


def test_utilisation_is_measured_where_the_chip_is_known(tmp_path, monkeypatch):
    peak = 1e9
    monkeypatch.setattr(chips, "of_device", lambda device: chips.Chip("one", peak, 1, 1, 1))
    speed = execute(tmp_path, training()).about["speed"]
    # Two products forward, one for the gradient, of 2 * 8 * 4 * 4 each; on 8 chips.
    at_peak = 3 * 2 * ROWS * WIDTH * WIDTH / (8 * peak)
    assert speed["mfu"] == pytest.approx(at_peak / speed["step_seconds"])
    assert {"rows_per_second", "input_wait", "compile_seconds"} <= speed.keys()


def test_frozen_matrices_wait_in_the_hosts_memory(tmp_path):
    kinds = jax.tree.map(
        lambda x: x.sharding.memory_kind,
        placed("t", training(host=("aim",)), make_mesh(MESH)).frozen["aim"],
    )
    assert kinds == {"kernel": "pinned_host", "scale": "device"}
    (there, here) = (tmp_path / name for name in ("host", "device"))
    ours, theirs = execute(there, training(host=("aim",))), execute(here, training())
    assert ours.about["values"] == theirs.about["values"]
    trees = [
        jax.tree.map(np.asarray, a.weights().make(jax.tree.map(_alone, a.weights().abstract)))
        for a in (ours, theirs)
    ]
    np.testing.assert_array_equal(trees[0]["kernel"], trees[1]["kernel"])
    assert not np.allclose(trees[0]["kernel"], 0)


def _alone(x):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)


def test_host_names_an_entry_of_frozen():
    with pytest.raises(ValueError, match="host names other, not in frozen"):
        placed("t", training(host=("other",)), make_mesh(MESH))
