"""The result of an unlearning run does not depend on padding, microbatches, devices, the mesh or
the number of processes; what is frozen has the same bits after it.
"""

import contextlib
import functools
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from support import unlearning_run
from support.experiment_checks import compiled_quickly
from support.processes import LAUNCHER, TESTS, finish, start
from support.unlearning_run import Cut, train, training

from kd_jax.launch import weights
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.trees import flatten

pytestmark = pytest.mark.slow  # all together
# Objectives that differ in what they sum: sequences and tokens, KL to a reference, hidden states
# and a vector in carry, a divergence of means over the batch, a dual variable in carry.
KINDS = ("npo_kl", "simnpo", "rmu", "undial", "flat", "pdu")
ADAPTER = (("npo_rt",), 2)


def on(devices=8, **axes):
    return make_mesh(MeshConfig(**axes), jax.devices()[:devices])


@contextlib.contextmanager
def compiled_anew():
    """Not read from the compilation cache: from there a program of several simulated devices
    forgets in which order its collectives come, and may hang (jax 0.10.2).
    """
    name = "jax_enable_compilation_cache"
    before = jax.config.values[name]
    jax.config.update(name, False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


@functools.cache
def alone(methods, rank):
    """On one device, in one piece."""
    with compiled_quickly():
        return train(training(methods, rank, Cut()), on(1))


def assert_same_result(methods, rank, cut, mesh):
    want = alone(methods, rank)
    assert_bits_of_the_start(want)
    with compiled_quickly(), compiled_anew() if mesh.size > 1 else contextlib.nullcontext():
        got = train(training(methods, rank, cut), mesh)
    assert_near((got.model, got.carry), (want.model, want.carry))
    assert len(got.metrics) == unlearning_run.STEPS
    for step, (ours, theirs) in enumerate(zip(got.metrics, want.metrics, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, x in theirs.items():
            np.testing.assert_allclose(
                ours[name], x, rtol=1e-4, atol=1e-5, err_msg=f"{step} {name}"
            )
    assert_bits_of_the_start(got)


def assert_near(got, want):
    """Float tolerance, against the largest entry of each array."""
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path, x in want.items():
        far = 1e-5 * max(float(np.abs(x).max()), 0.1)
        np.testing.assert_allclose(got[path], x, rtol=1e-4, atol=far, err_msg=path)


def assert_bits_of_the_start(trained):
    (frozen,) = trained.frozen.values()
    for path, x in flatten(unlearning_run.start()).items():
        np.testing.assert_array_equal(flatten(frozen)[path], x, err_msg=path)


def assert_moved(trained, begin):
    """By a hundred times the tolerance, so that the tests here can fail, or, above the layer that
    RMU looks at, not at all."""
    ends, moved = flatten(trained.model), []
    for path, x in flatten(begin).items():
        gone = np.abs(ends[path] - x).max()
        moved.append(gone > 1e-3 * np.abs(ends[path]).max())
        assert moved[-1] or gone == 0, path
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_all_parameters_unlearn_the_same_when_everything_is_cut_at_once(kind):
    cut = Cut(length=12, padding_rows=8, microbatches=2)
    assert_same_result((kind,), 0, cut, on(data=2, fsdp=2, tensor=2))
    assert_moved(alone((kind,), 0), unlearning_run.start())


@pytest.mark.parametrize(
    ("cut", "axes"),
    [
        (Cut(length=12, padding_rows=8), {"devices": 1}),
        (Cut(microbatches=4), {"devices": 1}),
        (Cut(), {"data": 8}),
        (Cut(), {"data": 1, "fsdp": 4, "devices": 4}),
        (Cut(), {"data": 1, "tensor": 2, "devices": 2}),
    ],
    ids=["padding", "microbatches", "data", "fsdp", "tensor"],
)
def test_an_adapter_unlearns_the_same(cut, axes):
    assert_same_result(*ADAPTER, cut, on(**axes))
    nothing = jax.tree.map(np.zeros_like, alone(*ADAPTER).model)
    assert_moved(alone(*ADAPTER), nothing)


@pytest.mark.multiprocess
def test_two_processes_unlearn_the_same(tmp_path):
    folder = tmp_path / "run"
    script = [sys.executable, str(TESTS / "support" / "unlearning_run.py"), str(folder)]
    (code,), said = finish(
        start(
            [*LAUNCHER, "-n", "2", "--devices", "4", "--", *script],
            JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "",
        )
    )
    assert code == 0, said[-6000:]
    (found,) = folder.glob("stages/unlearned-*")
    tree = materialise(weights.from_checkpoint(found / "tree"), on())
    assert_near(jax.device_get(tree), alone(*unlearning_run.RUN).model)
