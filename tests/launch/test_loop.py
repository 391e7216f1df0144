import dataclasses
import json
import os
import signal
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import NonFinite, Preempted, UserError
from kd_jax.launch.loop import Hook, fit
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.meter import MEASURED
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.writers import Jsonl


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])


@pytest.mark.slow
def test_fit_is_the_step_applied_in_turn(mesh):
    """The loop adds nothing: parameters equal those of a hand-written loop, to the bit."""
    step = tiny_run.train_step()
    state, abstract = tiny_run.start(step, mesh)
    run = jax.jit(step.apply, out_shardings=(shardings_of(abstract), None))
    for k in range(4):
        state, metrics = run(state, {}, tiny_run.batches(k, slice(0, tiny_run.ROWS)))
    expected, loss = tiny_run.values_of(state, mesh), float(metrics["loss"])
    seen = []
    found = tiny_run.values_of(
        tiny_run.train(
            mesh, steps=4, hooks=[Hook(2, lambda k, s, f: seen.append((k, int(s.step))))]
        ),
        mesh,
    )
    assert seen == [(2, 2), (4, 4)]
    assert np.isfinite(loss)
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [MeshConfig(), MeshConfig(fsdp=2, tensor=2)], ids=["data", "mixed"]
)
def test_every_mesh_gives_the_numbers_of_one_device(config):
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    expected = tiny_run.values_of(tiny_run.train(one, steps=3), one)
    mesh = make_mesh(config)
    found = tiny_run.values_of(tiny_run.train(mesh, steps=3), mesh)
    assert found["step"] == 3
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-6, err_msg=path)


def test_it_compiles_once_and_reuses_the_memory(mesh):
    traced = chex.assert_max_traces(tiny_run.train_step().apply, n=1)
    step = dataclasses.replace(tiny_run.train_step(), apply=traced)
    state, abstract = tiny_run.start(step, mesh)
    given = state.params["model"]["layers"]["first"]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            compiled.append(name) if name.endswith("backend_compile_duration") else None
        )
    )
    counts = []
    try:
        fit(
            step,
            state,
            {},
            tiny_run.batches,
            steps=6,
            mesh=mesh,
            shardings=shardings_of(abstract),
            batch_size=tiny_run.ROWS,
            hooks=[Hook(1, lambda k, s, f: counts.append(len(compiled)))],
        )
    finally:
        jax.monitoring.clear_event_listeners()
    assert given.is_deleted()
    assert counts[0] > 0 and counts[0] == counts[-1]


def test_hooks_come_when_they_are_due(mesh):
    seen = []

    def hook(name, every, **when):
        return Hook(every, lambda k, s, f: seen.append((name, k)), **when)

    hooks = [hook("a", 2, at_start=True), hook("b", 4, at_end=False), hook("c", 4)]
    tiny_run.train(mesh, steps=5, hooks=hooks)
    assert seen == [("a", 0), ("a", 2), ("a", 4), ("b", 4), ("c", 4), ("a", 5), ("c", 5)]


def test_metrics_are_written_once_for_each_interval(mesh, tmp_path):
    """Hooks and checkpoints in between change no line."""
    written = []
    for name, hooks in (("plain", []), ("hooked", [Hook(3, lambda k, s, f: None)])):
        writer = Jsonl(tmp_path / f"{name}.jsonl")
        tiny_run.train(mesh, steps=7, log_every=2, writer=writer, hooks=hooks)
        writer.close()
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        written.append([json.loads(line) for line in lines])
    assert [record["step"] for record in written[0]] == [2, 4, 6, 7]
    for plain, hooked in zip(*written, strict=True):
        assert plain["rows_per_second"] > 0 and hooked["rows_per_second"] > 0
        plain, hooked = (
            {k: v for k, v in line.items() if k not in MEASURED} for line in (plain, hooked)
        )
        assert plain == hooked and set(plain) == {"step", "loss", "error", "size", "grad_norm"}


@pytest.mark.slow
def test_prepare_runs_every_n_steps_and_draws_once_for_each(mesh):
    """The prepared batch is kept for the hold: equal to the same by hand."""
    drawn = []

    def feed(draw, rows):
        drawn.append(draw)
        return tiny_run.batches(draw, rows)

    held = {"prepare": tiny_run.hold, "prepare_every": 3}
    found = tiny_run.values_of(tiny_run.train(mesh, steps=6, batches=feed, **held), mesh)
    assert drawn == [0, 1]

    step = tiny_run.train_step()
    state, abstract = tiny_run.start(step, mesh)
    run = jax.jit(step.apply, out_shardings=(shardings_of(abstract), None))
    for draw in range(2):
        batch = tiny_run.hold(state, {}, tiny_run.batches(draw, slice(0, tiny_run.ROWS)))
        for _ in range(3):
            state, _ = run(state, {}, batch)
    for path, x in tiny_run.values_of(state, mesh).items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-6, err_msg=path)
    assert not np.allclose(
        found["params/model/bias"],
        tiny_run.values_of(tiny_run.train(mesh, steps=6), mesh)["params/model/bias"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("guard", [True, False])
def test_a_non_finite_loss_names_the_step_and_keeps_the_last_good_checkpoint(mesh, tmp_path, guard):
    def feed(draw, rows):
        batch = tiny_run.batches(draw, rows)
        return batch | ({"targets": batch["targets"] * np.nan} if draw == 5 else {})

    step = tiny_run.train_step(guard=guard)
    hooked = []
    with Checkpoints(tmp_path, {}, every=2) as checkpoints:
        with pytest.raises(NonFinite, match="step 5") as caught:
            tiny_run.train(
                mesh,
                steps=40,
                step=step,
                batches=feed,
                checkpoints=checkpoints,
                hooks=[Hook(3, lambda k, s, f: hooked.append(k))],
            )
        assert caught.value.step == 5 and caught.value.exit_code == 1
        assert hooked == [3]
        assert checkpoints.steps == [2, 4]
    expected = tiny_run.values_of(tiny_run.train(mesh, steps=4, step=step), mesh)
    with Checkpoints(tmp_path, {}, every=2) as checkpoints:
        state, _ = tiny_run.start(step, mesh, checkpoints)
        for path, x in tiny_run.values_of(state, mesh).items():
            np.testing.assert_array_equal(x, expected[path], err_msg=path)


def test_a_non_finite_loss_is_found_without_checkpoints_or_hooks(mesh):
    def feed(draw, rows):
        batch = tiny_run.batches(draw, rows)
        return batch | ({"targets": batch["targets"] * np.inf} if draw == 3 else {})

    with pytest.raises(NonFinite, match="step 3"):
        tiny_run.train(mesh, steps=100, batches=feed, log_every=4)


@pytest.mark.slow
def test_sigterm_saves_and_the_rest_gives_the_same_parameters(mesh, tmp_path):
    def send(k, state, frozen):
        if k == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    held = {"prepare": tiny_run.hold, "prepare_every": 3}
    before = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path, {}, every=6) as checkpoints:
        with pytest.raises(Preempted) as caught:
            tiny_run.train(mesh, steps=9, checkpoints=checkpoints, hooks=[Hook(1, send)], **held)
        assert caught.value.exit_code == 75
        assert caught.value.step == 6 and checkpoints.steps == [6]  # the end of the hold
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path, {}, every=6) as checkpoints:
        resumed = tiny_run.train(mesh, steps=9, checkpoints=checkpoints, **held)
        resumed = tiny_run.values_of(resumed, mesh)
    for path, x in tiny_run.values_of(tiny_run.train(mesh, steps=9, **held), mesh).items():
        np.testing.assert_array_equal(resumed[path], x, err_msg=path)


def test_the_last_save_is_waited_for(mesh, tmp_path, monkeypatch):
    """There is no later one to notice that it failed."""
    waits, save = {}, Checkpoints.save

    def noted(self, step, state, *, wait=False, **more):
        waits[step] = wait
        save(self, step, state, wait=wait, **more)

    monkeypatch.setattr(Checkpoints, "save", noted)
    with Checkpoints(tmp_path, {}, every=2) as checkpoints:
        tiny_run.train(mesh, steps=5, checkpoints=checkpoints)
    assert waits == {2: False, 4: False, 5: True}


def test_errors_of_the_batches_come_out_and_the_thread_ends(mesh):
    class Lost(Exception):
        pass

    def feed(draw, rows):
        if draw == 3:
            raise Lost("record 17")
        return tiny_run.batches(draw, rows)

    def fails(k, state, frozen):
        raise Lost("hook")

    for settings in ({"batches": feed}, {"hooks": [Hook(2, fails)]}):
        with pytest.raises(Lost, match="record 17|hook"):
            tiny_run.train(mesh, steps=50, **settings)
    deadline = time.monotonic() + 5
    while any(t.name == "prefetch" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_what_cannot_work_is_said_before_it_starts(mesh, tmp_path):
    def train(**settings):
        return tiny_run.train(mesh, steps=4, **settings)

    with pytest.raises(ValueError, match="prepare_every"):
        train(prepare_every=2)
    with (
        Checkpoints(tmp_path, {}, every=4) as checkpoints,
        pytest.raises(ValueError, match="multiple of prepare_every, 3"),
    ):
        train(prepare=tiny_run.hold, prepare_every=3, checkpoints=checkpoints)
    with pytest.raises(UserError, match="batch_size: got 15, takes a multiple of 2"):
        train(batch_size=15)
    with pytest.raises(ValueError, match="index has the shape .15,., takes 16 rows"):
        train(batches=lambda k, rows: tiny_run.batches(k, slice(0, 15)))

    step = tiny_run.train_step()
    state, abstract = tiny_run.start(step, mesh)
    with pytest.raises(ValueError, match="frozen: reference/bias is the same array"):
        fit(
            step,
            state,
            {"reference": state.params["model"] | {"layers": jnp.zeros(1)}},
            tiny_run.batches,
            steps=4,
            mesh=mesh,
            shardings=shardings_of(abstract),
            batch_size=tiny_run.ROWS,
        )
