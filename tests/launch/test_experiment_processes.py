"""A whole experiment (distillation, unlearning, merge) in 2 and 4 processes gives the numbers
of one, and process 0 alone writes its reports.
"""

import json
import re
import sys

import jax
import numpy as np
import pytest
from support.processes import LAUNCHER, TESTS, finish, start

from kd_jax.launch import run, weights
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.trees import flatten

STAGES = ("distilled", "further", "unlearned", "merged")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run.main("support.three_kinds", ["smoke", "--workdir", str(folder)]) == 0
    return folder


def results(folder):
    """{stage: its arrays by path}, and the numbers of evaluations."""
    mesh = make_mesh(MeshConfig())
    (stages,) = ({p.name.rsplit("-", 1)[0]: p for p in folder.glob("stages/*")},)
    trees = {name: weights.from_checkpoint(stages[name] / "tree") for name in STAGES}
    found = {name: flatten(jax.device_get(materialise(tree, mesh))) for name, tree in trees.items()}
    with np.load(stages["unlearned"] / "rows.npz") as rows:
        return found | {"rows": dict(rows)}


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_give_the_numbers_of_one_and_only_the_first_reports(alone, tmp_path, processes):
    folder, written = tmp_path / "run", tmp_path / "written"
    script = [sys.executable, str(TESTS / "support" / "three_kinds.py"), str(folder), str(written)]
    options = ["-n", str(processes), "--devices", str(8 // processes), "--"]
    (code,), said = finish(
        start(
            [*LAUNCHER, *options, *script],
            JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "",
        )
    )
    assert code == 0, said[-6000:]

    ours, theirs = results(folder), results(alone)
    assert {"0/scores/each", "3/scores/each"} <= theirs["rows"].keys()
    for stage, arrays in theirs.items():
        assert arrays.keys() == ours[stage].keys()
        for path, x in arrays.items():
            np.testing.assert_allclose(
                ours[stage][path], x, rtol=1e-4, atol=1e-5, err_msg=f"{stage} {path}"
            )

    by_process = [json.loads((tmp_path / f"written-{i}").read_text()) for i in range(processes)]
    reports = [p for p in by_process[0] if re.search(r"(results|config|environment)\.json", p)]
    assert len({p.split(".new")[0] for p in reports}) == 3
    # The others take part in checkpoints and trees of arrays, and in nothing else.
    for paths in by_process[1:]:
        others = [p for p in paths if not re.search(r"/(checkpoints|tree)(/|\.|$)", p)]
        assert others == []
