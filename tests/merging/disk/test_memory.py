"""The declared bound on memory: docs/merging.md."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from support.checkpoints import ROOT, of_models, write_model, write_recipe

LARGEST = 6_000_000 * 4  # bytes
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
EACH = {name: {"weight": 1, "density": 0.5} for name in ("a", "b")}
RECIPES = {
    "linear": of_models("linear", {name: {"weight": 1} for name in ("base", "a", "b")}),
    "model_stock": of_models("model_stock", {"a": {}, "b": {}}, "base"),
    "ties": of_models("ties", EACH, "base", {"rescale": True}),
    "ties, flat": of_models("ties", EACH, "base", threshold="flat"),
    "breadcrumbs": of_models("breadcrumbs", EACH, "base"),
    "della": of_models("della", EACH, "base"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models of two tensors; the task vectors have few values, the worst for thresholds."""
    path = tmp_path_factory.mktemp("memory")
    random = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        steps = random.integers(-4, 5, (2, 1500, 4000)).astype(np.float32)
        write_model(path / name, {"t0": steps[0], "t1": steps[1]})
    return path


def anonymous(pid):
    """Bytes of memory that are the process's own, 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def peak(*line):
    process = subprocess.Popen([sys.executable, *map(str, line)], env=ENVIRONMENT)
    highest = 0
    while process.poll() is None:
        highest = max(highest, anonymous(process.pid))
        time.sleep(0.002)
    assert process.returncode == 0
    return highest


@pytest.fixture(scope="module")
def bare():
    """What the interpreter and the modules take."""
    return peak("-c", "import kd_jax.merging.disk.command, time; time.sleep(0.1)")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", RECIPES)
def test_no_merge_needs_more_than_twice_the_largest_tensor(folder, bare, tmp_path, name):
    assert bare > 2**20
    recipe = write_recipe(folder / "r.yaml", RECIPES[name])
    used = peak("-m", "kd_jax.merging", recipe, tmp_path / "out", "--quiet", "--threads", 2)
    assert used - bare < 2 * LARGEST
    if name in ("linear", "model_stock"):
        assert used - bare < LARGEST / 2
