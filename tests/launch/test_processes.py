"""Two real processes joined by jax.distributed do what one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support import tiny_run

from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.mesh import MeshConfig, make_mesh

TESTS = Path(__file__).parents[1]
OPTIONS = "--devices 2 --fsdp 2 --tensor 2 --steps 12 --every 3"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(folder, options):
    """Two processes, each with the file that it writes to."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "KD_JAX_"))}
    keep |= {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "JAX_NUM_PROCESSES": "2"}
    keep |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    command = [sys.executable, str(TESTS / "support" / "tiny_run.py"), str(folder)]
    # Files and not pipes: one process that waits to write would hold up the other.
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - closed by `finish`
    return [
        (
            subprocess.Popen(
                [*command, *options.split()],
                env=keep | {"JAX_PROCESS_ID": str(i)},
                stdout=file,
                stderr=subprocess.STDOUT,
            ),
            file,
        )
        for i, file in enumerate(files)
    ]


def finish(launched, timeout=240):
    said = []
    try:
        codes = [process.wait(timeout=timeout) for process, _ in launched]
    finally:
        for process, file in launched:
            process.kill()
            file.seek(0)
            said.append(file.read())
            file.close()
    return codes, "\n\n".join(said)


@pytest.mark.multiprocess
def test_two_processes_preempted_and_resumed_give_the_numbers_of_one(tmp_path):
    """4 devices, with the batch split over the processes; the signal reaches only the second.

    The checkpoint of the preemption is then damaged, and the run goes on from the one before.
    """
    first = launch(tmp_path, OPTIONS + " --delay 0.3")
    lines = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while (
        not (lines.exists() and '"step": 4' in lines.read_text())
        and all(process.poll() is None for process, _ in first)
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    first[1][0].send_signal(signal.SIGTERM)
    codes, said = finish(first)
    assert codes == [75, 75], said[-6000:]

    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert len(steps) == 2 and 4 <= steps[-1] < 12
    for data in (tmp_path / "checkpoints" / str(steps[-1]) / "state").rglob("d/*"):
        data.unlink()
    codes, said = finish(launch(tmp_path, OPTIONS))
    assert codes == [0, 0], said[-6000:]
    assert f"step {steps[-1]} is corrupt and is skipped" in said
    starts = [int(line) for line in (tmp_path / "starts.txt").read_text().split()]
    assert starts == [-1, steps[-1]]

    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    state = tiny_run.train(mesh, steps=12)
    found = np.load(tmp_path / "final.npz")
    for path, x in tiny_run.values_of(state, mesh).items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-6, err_msg=path)

    # 21 examples in batches of 16.
    values, rows = evaluate(
        tiny_run.EVAL_STEP, state.params, {}, {}, tiny_run.examples(), batch_size=8, mesh=mesh
    )
    theirs = json.loads((tmp_path / "values.json").read_text())
    for name, value in values.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npz")["error"], rows["error"], rtol=1e-4)
