"""Set before any backend starts: CPU, 8 simulated devices, strict shapes, a fixed Hypothesis.

Tests skipped because something is not there say so in one form, "missing data: ...". They are
listed at the end of a run; with KD_JAX_REQUIRE_DATA naming markers ("data,smollm2"), a skipped
test that carries one of them fails the run.
"""

import gc
import importlib.util
import os
from pathlib import Path

import hypothesis
import jax
import pytest

PLATFORM = os.environ.get("KD_JAX_PLATFORM", "cpu")
MISSING = "missing data:"

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_numpy_rank_promotion", "raise")
if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)
    # As `runtime.init` does for simulated devices: programs from the compilation cache hang else.
    os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    if importlib.util.find_spec("libtpu") is None:
        # Tests compile more than they compute: two fifths of their time. Not for a TPU's programs.
        os.environ["XLA_FLAGS"] += (
            " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
            " --xla_cpu_use_fusion_emitters=false"
        )

hypothesis.settings.register_profile(
    "kd_jax", derandomize=True, deadline=None, max_examples=20, database=None
)
hypothesis.settings.load_profile("kd_jax")

# A compiled program keeps some memory maps, of which Linux gives a process 65,530 by default; a
# worker that runs half of all tests would come to them, and die of a segmentation fault.
MAPS = Path("/proc/self/maps")
MOST_MAPS = 25_000


@pytest.fixture(autouse=True, scope="module")
def _few_maps():
    """Programs are forgotten after a module when there are many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items):
    """Tests for an accelerator run on that platform only, those for libtpu where it is."""
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("libtpu"):
                item.add_marker(pytest.mark.skip(reason="libtpu is not installed: make aot"))
    for marker, platform in (("gpu", "cuda"), ("tpu", "tpu")):
        for item in items:
            if item.get_closest_marker(marker) and platform != PLATFORM:
                item.add_marker(pytest.mark.skip(reason=f"set KD_JAX_PLATFORM={platform}"))


def _missing(config) -> list:
    """The reports of tests skipped for missing data; with xdist, those of every worker."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return [report for report in skipped if MISSING in str(report.longrepr)]


def _required(report) -> bool:
    wanted = set(filter(None, os.environ.get("KD_JAX_REQUIRE_DATA", "").split(",")))
    return bool(wanted & set(report.keywords))


def pytest_terminal_summary(terminalreporter, config):
    missing = _missing(config)
    if not missing:
        return
    terminalreporter.section("skipped for missing data")
    for report in missing:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        note = "REQUIRED " if _required(report) else ""
        terminalreporter.write_line(f"{note}{report.nodeid}: {str(reason).split(MISSING)[-1]}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    """Fails the run, on the controller, when a required test was skipped."""
    if exitstatus == 0 and any(map(_required, _missing(session.config))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
