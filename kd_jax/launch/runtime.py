"""Start-up of a process: devices, the other processes, the compilation cache."""

import contextlib
import glob
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from kd_jax.launch.errors import UserError

T = TypeVar("T")

HEARTBEAT = 60  # seconds of silence after which a process counts as dead
JOIN = 300  # seconds to wait for all processes at the start

_THREADS = 8  # of XLA for each simulated device
_ORDERED = "--xla_cpu_enable_concurrency_optimized_scheduler=false"

# Set by clusters that `jax.distributed.initialize()` finds by itself.
_CLUSTERS = (
    ("TPU_WORKER_HOSTNAMES", lambda value: "," in value),  # GKE
    ("MEGASCALE_COORDINATOR_ADDRESS", bool),  # several TPU slices
    ("SLURM_NTASKS", lambda value: int(value) > 1),
    ("OMPI_COMM_WORLD_SIZE", lambda value: int(value) > 1),
    ("KD_JAX_DISTRIBUTED", lambda value: value == "1"),  # said by hand, where it cannot be seen
)
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def init(devices: int | None = None, *, cache: str | Path | None = None) -> None:
    """Call it once, before any other use of jax.

    devices: simulate so many on the CPU; KD_JAX_DEVICES when None.
    cache: folder of the persistent compilation cache; when None, JAX_COMPILATION_CACHE_DIR, and
        when that is unset ~/.cache/kd_jax/compiled. "" turns it off.

    Joins the other processes where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    are set, and where the environment is a TPU pod's, GKE's, SLURM's or Open MPI's
    (KD_JAX_DISTRIBUTED=1 says so where it cannot be seen). A process that has been silent for
    KD_JAX_HEARTBEAT seconds (60) is lost, and jax's runtime then aborts all others (exit code
    134); KD_JAX_JOIN (300) is how long a start waits for all of them.

    UserError for a variable that makes no sense, or one of the three without the others.
    """
    if devices is None and os.environ.get("KD_JAX_DEVICES"):
        devices = _number("KD_JAX_DEVICES", 0)
    if devices is not None:
        if devices < 1:
            raise UserError(f"KD_JAX_DEVICES: got {devices}, takes at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
        # A program that is read from the compilation cache forgets in which order its collectives
        # come: devices that start with different ones wait for one another (jax 0.10.2). Where it
        # is scheduled to save memory instead of time, few are ready at once.
        flags = os.environ.get("XLA_FLAGS", "")
        if _ORDERED not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {_ORDERED}".strip()
        if _number("JAX_NUM_PROCESSES", 1) > 1:
            # On the CPU a collective holds a thread until its peers join in. XLA has as many
            # threads as cores, and with few of them those that the peers wait for find none left.
            os.environ.setdefault("NPROC", str(_THREADS * devices))
    _join()
    if cache is None:
        default = Path.home() / ".cache" / "kd_jax" / "compiled"
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    if cache != "":
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # With the default thresholds nothing that compiles in under a second is kept.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _join() -> None:
    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": _number("KD_JAX_HEARTBEAT", HEARTBEAT),
        "initialization_timeout": _number("KD_JAX_JOIN", JOIN),
        # Whoever ends waits so long for the others to end, too.
        "shutdown_timeout_seconds": _number("KD_JAX_HEARTBEAT", HEARTBEAT),
    }
    given = [name for name in _EXPLICIT if os.environ.get(name)]
    if given:
        if len(given) < len(_EXPLICIT):
            missing = sorted(set(_EXPLICIT) - set(given))
            raise UserError(f"{', '.join(given)} is set without {', '.join(missing)}")
        count, number = _number(_EXPLICIT[1], 1), _number(_EXPLICIT[2], 0)
        if not 0 <= number < count:
            raise UserError(f"JAX_PROCESS_ID: got {number}, takes 0 to {count - 1}")
        if count > 1:
            jax.distributed.initialize(os.environ[_EXPLICIT[0]], count, number, **limits)
    elif any(test(os.environ[name]) for name, test in _CLUSTERS if os.environ.get(name)):
        jax.distributed.initialize(**limits)
    elif _on_tpu_host():
        # A TPU VM says only to its metadata server whether it is one of several hosts. Off a
        # cloud there is none, and this host is alone.
        with contextlib.suppress(ValueError):
            jax.distributed.initialize(**limits)


def _on_tpu_host() -> bool:
    wanted = jax.config.values["jax_platforms"] or "tpu"
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def _number(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise UserError(f"{name}: got {value!r}, takes a whole number")
    return int(value)


def is_main() -> bool:
    """Is this the process that writes what only one may write?"""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Is this the only process?"""
    return jax.process_count() == 1


def barrier(name: str) -> None:
    """Waits until every process is here; nothing with one process."""
    if not is_alone():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def everywhere(flag: bool) -> bool:
    """Is `flag` true in every process? All of them ask, and all get the same answer."""
    if is_alone():
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).all())


def on_main(f: Callable[[], T]) -> T | None:
    """f() on the first process, None on the others, which wait for it.

    What f raises is raised there, and a UserError on the others: nobody is left waiting.
    """
    result, fault = None, None
    if is_main():
        try:
            result = f()
        except Exception as error:
            fault = error
    fine = everywhere(fault is None)
    if fault is not None:
        raise fault
    if not fine:
        raise UserError("process 0 cannot go on; it says why")
    return result


def leave(code: int) -> None:
    """Ends this process at once where others still count on it.

    An orderly exit would wait for them, and they for this one's part of a collective; ended like
    this, they notice within a heartbeat.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
