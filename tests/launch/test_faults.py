"""Real processes joined by jax.distributed, one of which is killed, stopped, stuck or preempted."""

import os
import signal

import jax
import numpy as np
import pytest
from support import processes, tiny_run

from kd_jax.launch.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.multiprocess

OPTIONS = "--fsdp 2 --steps 12 --every 3 --delay 0.3"


def launch(folder, *, workers, devices=1, options=OPTIONS, supervision="--grace 1"):
    """The launcher with a tiny run, in a process of its own."""
    settings = f"-n {workers} --devices {devices} --heartbeat 10 {supervision} --"
    return processes.start(
        [*processes.LAUNCHER, *settings.split(), *processes.tiny_run(folder, options)]
    )


def wait_for_step(folder, step, launcher):
    """Until the run has written the line of this step, which it does two steps later."""
    lines = folder / "metrics.jsonl"
    processes.wait_for(lambda: lines.exists() and f'"step": {step},' in lines.read_text(), launcher)


def wait_for_save(folder, step, launcher):
    processes.wait_for((folder / "checkpoints" / str(step)).exists, launcher)


def send(folder, worker, number):
    os.kill(int((folder / f"pid-{worker}").read_text()), number)


def steps_saved(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def test_a_killed_worker_ends_all_and_the_same_command_resumes(tmp_path):
    """The machine of one of four is gone without a word; the other three wait in a collective."""
    first = launch(tmp_path, workers=4)
    wait_for_save(tmp_path, 3, first)
    send(tmp_path, 2, signal.SIGKILL)
    codes, said = processes.finish(first)
    assert codes == [137]
    assert "worker 2 was killed (SIGKILL); " in said and "resume from the last checkpoint" in said
    saved = steps_saved(tmp_path)[-1]
    assert 3 <= saved < 12

    codes, said = processes.finish(launch(tmp_path, workers=4))
    assert codes == [0] and "launcher:" not in said
    starts = [int(line) for line in (tmp_path / "starts.txt").read_text().split()]
    assert starts == [-1, saved]
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    found = np.load(tmp_path / "final.npz")
    for path, x in tiny_run.values_of(tiny_run.train(mesh, steps=12), mesh).items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_stopped_worker_is_ended_once_the_others_have_missed_it(tmp_path):
    """They abort by themselves; the stopped one would stay for ever."""
    launcher = launch(tmp_path, workers=2)
    wait_for_step(tmp_path, 2, launcher)
    send(tmp_path, 1, signal.SIGSTOP)
    codes, said = processes.finish(launcher)
    assert codes == [134]
    assert "worker 0 stopped because a peer was lost" in said
    assert "worker 1 had to be ended (SIGKILL)" in said


def test_a_stuck_worker_leads_to_the_end_of_all(tmp_path):
    """Its process lives, so no heartbeat is missed; the other waits in a collective."""
    options = f"{OPTIONS} --hang-at 5"
    launcher = launch(tmp_path, workers=2, options=options, supervision="--grace 1 --stuck 8")
    codes, said = processes.finish(launcher)
    assert codes == [134] and "has made no progress for 8 s; ending all" in said
    assert '"step": 2,' in (tmp_path / "metrics.jsonl").read_text()


def test_a_request_to_any_worker_or_to_the_launcher_saves_one_step_in_all(tmp_path):
    """75 from each; the second start goes on from where the first stopped, and so forth."""
    options = OPTIONS.replace("--steps 12", "--steps 90")
    first = launch(tmp_path, workers=2, devices=2, options=options)
    wait_for_step(tmp_path, 2, first)
    send(tmp_path, 1, signal.SIGTERM)
    codes, said = processes.finish(first)
    assert codes == [75] and "workers 0, 1 stopped as asked (75)" in said
    saved = steps_saved(tmp_path)[-1]
    assert 2 <= saved < 90

    second = launch(tmp_path, workers=2, devices=2, options=options)
    wait_for_step(tmp_path, saved + 1 if saved % 2 else saved + 2, second)
    second.process.send_signal(signal.SIGTERM)
    codes, said = processes.finish(second)
    assert codes == [75] and "workers 0, 1 stopped as asked (75)" in said
    assert saved < steps_saved(tmp_path)[-1] < 90
    starts = [int(line) for line in (tmp_path / "starts.txt").read_text().split()]
    assert starts == [-1, saved]
