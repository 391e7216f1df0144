"""Real processes joined by jax.distributed do what one does, and go on from one another's work."""

import json
import signal

import jax
import numpy as np
import pytest
from support import tiny_run
from support.processes import finish, start, start_joined, wait_for
from support.processes import tiny_run as command

from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.mesh import MeshConfig, make_mesh

STEPS = 12
OPTIONS = f"--steps {STEPS} --every 3"
SHARDED = f"{OPTIONS} --fsdp 2 --tensor 2"


@pytest.fixture(scope="module")
def whole():
    """The run in one process: its mesh and the state at its end."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    return mesh, tiny_run.train(mesh, steps=STEPS)


def check(folder, whole):
    mesh, state = whole
    found = np.load(folder / "final.npz")
    for path, x in tiny_run.values_of(state, mesh).items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-6, err_msg=path)

    # 21 examples in batches of 16.
    values, rows = evaluate(
        tiny_run.EVAL_STEP, state.params, {}, {}, tiny_run.examples(), batch_size=8, mesh=mesh
    )
    theirs = json.loads((folder / "values.json").read_text())
    for name, value in values.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-5)
    np.testing.assert_allclose(np.load(folder / "rows.npz")["error"], rows["error"], rtol=1e-4)


def starts(folder):
    return [int(line) for line in (folder / "starts.txt").read_text().split()]


@pytest.mark.multiprocess
def test_two_processes_preempted_and_resumed_give_the_numbers_of_one(tmp_path, whole):
    """4 devices, with the batch split over the processes; the signal reaches only the second.

    The checkpoint of the preemption is then damaged, and the run goes on from the one before.
    """
    lines = tmp_path / "metrics.jsonl"
    first = start_joined(2, command(tmp_path, f"{SHARDED} --devices 2 --delay 0.3"))
    wait_for(lambda: lines.exists() and '"step": 4' in lines.read_text(), *first)
    first[1].process.send_signal(signal.SIGTERM)
    codes, said = finish(*first)
    assert codes == [75, 75], said[-6000:]

    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert len(steps) == 2 and 4 <= steps[-1] < STEPS
    for data in (tmp_path / "checkpoints" / str(steps[-1]) / "state").rglob("d/*"):
        data.unlink()
    codes, said = finish(*start_joined(2, command(tmp_path, f"{SHARDED} --devices 2")))
    assert codes == [0, 0], said[-6000:]
    assert f"step {steps[-1]} is corrupt and is skipped" in said
    assert starts(tmp_path) == [-1, steps[-1]]
    check(tmp_path, whole)


@pytest.mark.multiprocess
def test_four_processes_then_two_then_one_go_on_with_the_same_batches(tmp_path, whole):
    """Of the two, each has devices that lie apart in the mesh, as on a pod: two pieces of rows."""
    four = start_joined(4, command(tmp_path, f"{SHARDED} --devices 1 --until 6"))
    codes, said = finish(*four)
    assert codes == [0] * 4, said[-6000:]
    apart = f"{OPTIONS} --fsdp 4 --devices 2 --interleaved --until 9"
    codes, said = finish(*start_joined(2, command(tmp_path, apart)))
    assert codes == [0, 0], said[-6000:]
    codes, said = finish(start(command(tmp_path, f"{SHARDED} --devices 4")))
    assert codes == [0], said[-6000:]
    assert starts(tmp_path) == [-1, 6, 9]
    check(tmp_path, whole)
