"""A run that is killed and started again, in real processes, ends where it would have ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_jax.launch.meter import MEASURED

TESTS = Path(__file__).parents[1]


def environment():
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "KD_JAX_"))}
    return keep | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "JAX_PLATFORMS": "cpu"}


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_times_it_ends_with_the_same_bits(tmp_path, seed):
    script = str(TESTS / "support" / "kill_sweep.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), str(seed)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    errors = "".join(f.read_text() for f in tmp_path.glob("*/error.txt"))
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert not errors, errors
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # -9: SIGKILL; 75: preempted. The last start was let finish.
    assert (said["whole"], said["exits"]) == (0, [-9, -9, 75, -9, -9, 0])
    starts = [int(line) for line in (cut / "starts.txt").read_text().split()]
    assert starts == sorted(starts) and len(set(starts)) >= 3, starts  # it did go on
    expected, found = (np.load(folder / "final.npz") for folder in (whole, cut))
    assert set(expected) == set(found) and len(set(expected)) > 10
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert found["step"] == 80
    assert metrics(cut) == metrics(whole)
    assert (cut / "values.json").read_text() == (whole / "values.json").read_text()
    assert not list((cut / "checkpoints").glob("*tmp*"))
