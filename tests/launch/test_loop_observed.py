"""What can be seen of a running loop: its speed, its events, a trace of its steps."""

import json
import time

import jax
import numpy as np
import pytest
from support import tiny_run

from kd_jax.launch import loop, profile, runtime
from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import UserError
from kd_jax.launch.goodput import Events
from kd_jax.launch.loop import Hook
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.profile import Profile
from kd_jax.launch.writers import Jsonl


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])


def test_the_speed_is_written_beside_the_loss(mesh, tmp_path):
    """The feed is slow, so that there is a wait to be seen."""

    def feed(draw, rows):
        time.sleep(0.02)
        return tiny_run.batches(draw, rows)

    writer = Jsonl(tmp_path / "metrics.jsonl")
    tiny_run.train(mesh, steps=8, log_every=2, writer=writer, batches=feed, flops=2e9, peak=1e12)
    writer.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("compile_seconds", 0) > 0 for line in lines] == [True, False, False, False]
    assert 0 < max(line["input_wait"] for line in lines) <= 1
    for line in lines:
        assert line["input_wait"] >= 0 and "tokens_per_second" not in line
        assert line["mfu"] == pytest.approx(2e-3 / line["step_seconds"])
        assert line["rows_per_second"] == pytest.approx(tiny_run.ROWS / line["step_seconds"])


def test_events_tell_what_happened_even_where_it_fails(mesh, tmp_path, monkeypatch):
    beats = []
    monkeypatch.setattr(loop, "beat", lambda: beats.append(1))

    def fails(k, state, frozen):
        if k == 5:
            raise KeyError("hook")

    events = Events(tmp_path / "events.jsonl")
    events.begin("finetune")
    with Checkpoints(tmp_path / "checkpoints", {}, every=3) as checkpoints:
        with pytest.raises(KeyError):
            tiny_run.train(
                mesh,
                steps=9,
                log_every=2,
                checkpoints=checkpoints,
                hooks=[Hook(5, fails, at_start=True)],
                events=events,
            )
        assert checkpoints.steps == [3]
    events.close()
    lines = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines[1:]} == {"finetune"}
    assert [(line["event"], line["step"]) for line in lines[2:]] == [
        ("ready", 0),
        ("evaluation_begin", 0),
        ("evaluation_end", 0),
        ("compiled", 0),
        ("step", 2),
        ("save_begin", 3),
        ("save_end", 3),
        ("step", 4),
        ("evaluation_begin", 5),
        ("save_begin", 5),
        ("save_end", 5),
        ("stop", 5),
    ]
    times = [line["time"] for line in lines]
    assert times == sorted(times) and lines[5]["seconds"] > 0
    assert len(beats) == 5


def traces(folder):
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_profile_traces_its_steps_and_changes_nothing(mesh, tmp_path, monkeypatch):
    """Neither the numbers nor the steps between which a run is saved and goes on."""
    ended, stop = [], jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (ended.append(len(seen)), stop()))
    seen = []

    def train(steps, **settings):
        seen.clear()
        hook = Hook(1, lambda k, s, f: seen.append(k))
        return tiny_run.values_of(tiny_run.train(mesh, steps=steps, hooks=[hook], **settings), mesh)

    expected = train(6)
    with Checkpoints(tmp_path / "checkpoints", {}, every=2) as checkpoints:
        whole = Profile(tmp_path / "whole", 2, 3)
        train(4, checkpoints=checkpoints, profile=whole)
        assert traces(tmp_path / "whole") == ["step_2"]
        assert ended == [2]  # after step 3, before its hook
        # It goes on from step 4: of one profile a step is left, the other is over.
        found = train(6, checkpoints=checkpoints, profile=Profile(tmp_path / "rest", 3, 5))
        assert traces(tmp_path / "rest") == ["step_5"]
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    train(3, profile=Profile(tmp_path / "over", 4, 5))
    assert not (tmp_path / "over").exists()
    monkeypatch.setattr(runtime, "is_main", lambda: False)
    train(3, profile=Profile(tmp_path / "other", 1, 1))
    assert not (tmp_path / "other").exists()


def test_a_profile_ends_with_the_loop(mesh, tmp_path):
    def fails(k, state, frozen):
        if k == 3:
            raise KeyError("hook")

    with pytest.raises(KeyError):
        tiny_run.train(
            mesh, steps=9, hooks=[Hook(1, fails)], profile=Profile(tmp_path / "cut", 2, 8)
        )
    assert traces(tmp_path / "cut") == ["step_2"]
    tiny_run.train(mesh, steps=2, profile=Profile(tmp_path / "short", 2, 8))  # a new one can begin
    assert traces(tmp_path / "short") == ["step_2"]


def test_the_steps_of_a_profile_are_two_numbers():
    assert profile.parse("10:15") == (10, 15) and profile.parse("3:3") == (3, 3)
    for text in ("10", "15:10", "0:3", "a:b", "-1:3", "1:2:3", "", "1.0:2", " 1:2"):
        with pytest.raises(UserError, match=f"--profile {text}: takes FIRST:LAST"):
            profile.parse(text)
