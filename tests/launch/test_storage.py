"""Storage that fails: real processes whose writes the system refuses, for a while or for good."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from kd_jax.launch.errors import StorageFailed, UserError
from kd_jax.launch.storage import Storage

TESTS = Path(__file__).parents[1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(folder, processes):
    """What each process found; every one of them comes to its end."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "KD_JAX_"))}
    keep["PYTHONPATH"] = f"{TESTS}{os.pathsep}{TESTS.parent}"
    together = {
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    command = [sys.executable, str(TESTS / "support" / "failing_storage.py"), str(folder)]
    logs = [folder / f"log-{i}.txt" for i in range(processes)]
    started = []
    for i, log in enumerate(logs):
        with log.open("w") as file:
            environment = keep | (together | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {})
            started.append(
                subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    said = "\n\n".join(log.read_text()[-4000:] for log in logs)
    assert codes == [0] * processes, said
    return [json.loads((folder / f"found-{i}.json").read_text()) for i in range(processes)]


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [1, 2])
def test_storage_that_fails_is_tried_again_and_given_up_with_the_last_good_step(
    tmp_path, processes
):
    """With two processes only one of them cannot write; the other waits for it in vain, and both
    take the same course."""
    everyone = run(tmp_path, processes)
    for found in everyone:
        # Of the steps 10, 20 and 30 the second failed, in the background.
        assert found["once"] == [10, 30]
        assert found["waited"] == [30, 40]
        # Then 50 failed, and 60 did at each of its repetitions.
        assert found["good"] == 40 and found["code"] == 1
        error = found["error"]
        assert str(tmp_path / "checkpoints") in error and "File too large" in error
        assert "the last good checkpoint is step 40; free space" in error and "\n" not in error
        # What could not be written is not taken for a checkpoint.
        assert found["files"] == ["30", "40"]
        assert found["restored"] == 40 and found["exact"]

    last = f"process {processes - 1}: " if processes > 1 else ""
    first = "process 0: " if processes > 1 else ""
    expected = [
        (20, last, "saving step 30 instead"),
        (40, first, "trying again"),
        (50, "", "the last good one is of step 40"),
        (50, last, "saving step 60 instead"),
        (60, last, "trying again"),
    ]
    for found in everyone:
        assert len(found["warnings"]) == len(expected), found["warnings"]
        for text, (step, process, then) in zip(found["warnings"], expected, strict=True):
            assert f"the checkpoint of step {step} could not be written ({process}" in text
            assert text.endswith(f"; {then}")
    # The one whose disk is full says why.
    assert all("File too large" in text for text in everyone[-1]["warnings"])


def test_storage_that_is_gone_is_given_up_with_the_last_good_step(tmp_path):
    """Nothing can be read there any more: the step is the last that was seen to be written."""
    folder, tree = tmp_path / "disk", {"x": jnp.arange(4.0)}
    storage = Storage(folder, None, pauses=(0.0, 0.0))

    def fails(good):
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("no folder")
        with (
            pytest.warns(RuntimeWarning, match="step 5 could not be written .*; trying again"),
            pytest.raises(StorageFailed, match=f"the last good checkpoint is step {good}"),
        ):
            storage.save(5, tree, {}, wait=True)
        folder.unlink()
        (tmp_path / "elsewhere").rename(folder)

    storage.save(1, tree, {}, wait=False)
    storage.save(2, tree, {}, wait=True)
    fails(good=2)
    storage.save(3, tree, {}, wait=False)  # it is back
    storage.save(4, tree, {}, wait=False)
    storage.wait()
    fails(good=4)
    assert storage.steps == [1, 2, 3, 4]
    storage.close()


def test_patience_is_a_number_of_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_JAX_SAVE_SECONDS", "soon")
    with pytest.raises(UserError, match="KD_JAX_SAVE_SECONDS: got 'soon'"):
        Storage(tmp_path, None, pauses=())
