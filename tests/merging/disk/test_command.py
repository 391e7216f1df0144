"""The command: what it loads, how it ends, and what several of it do together."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.checkpoints import ROOT, command, of_models, read_model, write_model, write_recipe

from kd_jax.merging.disk.run import merge

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def three(tmp_path):
    """A merge into 24 shards by DELLA."""
    for i, name in enumerate(("base", "a", "b")):
        random = np.random.default_rng(i)
        arrays = {f"t{k}": random.standard_normal((256, 512), np.float32) for k in range(24)}
        write_model(tmp_path / name, arrays)
    each = {name: {"weight": 1, "density": 0.5} for name in ("a", "b")}
    write_recipe(tmp_path / "r.yaml", of_models("della", each, "base", max_shard_size="600KB"))
    return tmp_path


# Rests after each shard, so that there is time to end it.
SLOW = """
import sys, time
from kd_jax.merging.disk import command, engine
finish = engine.Writer._finish
def rest(*arguments):
    finish(*arguments)
    time.sleep(0.2)
engine.Writer._finish = rest
sys.exit(command.main())
"""


def start(*arguments, code=("-m", "kd_jax.merging")):
    line = [sys.executable, *code, *map(str, arguments)]
    return subprocess.Popen(
        line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished_shards(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("model-*.safetensors")}


def wait_for_shards(folder, count):
    for _ in range(3000):
        if len(finished_shards(folder)) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("no shards")


def check_same(first, second):
    one, other = read_model(first), read_model(second)
    assert set(one) == set(other)
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_merge_that_was_ended_goes_on_where_it_was(three, number):
    growing = three / ".out.merging"
    process = start(three / "r.yaml", three / "out", "--threads", "1", code=("-c", SLOW))
    wait_for_shards(growing, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert number == signal.SIGKILL or "interrupted; the same command goes on" in errors
    assert not (three / "out").exists()
    kept = finished_shards(growing)
    assert 2 <= len(kept) < 24
    done = command(three / "r.yaml", three / "out")
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    now = finished_shards(three / "out")
    assert len(now) == 24
    assert {name: now[name] for name in kept} == kept
    assert not growing.exists()
    merge(three / "r.yaml", three / "whole")
    check_same(three / "out", three / "whole")


def test_processes_share_an_output(three):
    crew = [
        start(three / "r.yaml", three / "out", "--process", k, "--processes", 3) for k in range(3)
    ]
    ends = [process.communicate(timeout=60) for process in crew]
    assert [process.returncode for process in crew] == [0, 0, 0], ends
    assert sum("wrote" in out for out, _ in ends) >= 1
    assert not (three / ".out.merging").exists()
    assert sum(not path.name.startswith(".") for path in (three / "out").iterdir()) == 24 + 4
    merge(three / "r.yaml", three / "whole")
    check_same(three / "out", three / "whole")
    for path in (three / "out").glob("model-*.safetensors"):
        assert path.read_bytes() == (three / "whole" / path.name).read_bytes()
    # One that comes late finds it done.
    late = command(three / "r.yaml", three / "out", "--process", 2, "--processes", 3)
    assert late.returncode == 0, late.stderr


def test_the_first_of_two_processes_waits_for_nobody(three):
    first = merge(three / "r.yaml", three / "out", process=0, processes=2)
    assert first.waiting == 12
    assert not (three / "out").exists()
    second = merge(three / "r.yaml", three / "out", process=1, processes=2)
    assert second.waiting == 0
    assert (three / "out/README.md").is_file()


def test_errors_are_one_line_with_an_exit_code(three):
    done = command(three / "none.yaml", three / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "none.yaml" in done.stderr
    assert command("--help").stdout.startswith("usage: python -m kd_jax.merging")
    assert command(three / "r.yaml").returncode == 2
    done = command(three / "r.yaml", three / "out", "--process", 3, "--processes", 3)
    assert done.returncode == 2
    assert "process: got 3 of 3" in done.stderr


def test_a_merge_loads_no_jax(three):
    code = (
        "import sys\n"
        "from kd_jax.merging.disk.command import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print([x for x in sys.modules if x.split('.')[0] in ('jax', 'flax', 'optax', 'scipy')])"
    )
    line = [sys.executable, "-c", code, three / "r.yaml", three / "out", "--quiet"]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
