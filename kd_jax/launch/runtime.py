"""Start-up of a process: devices, the other processes, the compilation cache."""

import os
from pathlib import Path

import jax

from kd_jax.launch.errors import UserError

# Set by clusters that `jax.distributed.initialize()` finds by itself.
_CLUSTERS = (
    ("TPU_WORKER_HOSTNAMES", lambda value: "," in value),
    ("MEGASCALE_COORDINATOR_ADDRESS", bool),
    ("SLURM_NTASKS", lambda value: int(value) > 1),
    ("OMPI_COMM_WORLD_SIZE", lambda value: int(value) > 1),
    ("KD_JAX_DISTRIBUTED", lambda value: value == "1"),
)


def init(devices: int | None = None, *, cache: str | Path | None = None) -> None:
    """Call it once, before any other use of jax.

    devices: simulate so many on the CPU; KD_JAX_DEVICES when None.
    cache: folder of the persistent compilation cache; when None, JAX_COMPILATION_CACHE_DIR, and
        when that is unset ~/.cache/kd_jax/compiled. "" turns it off.

    Joins the other processes where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    are set, or where the environment is a TPU pod slice's, SLURM's or Open MPI's
    (KD_JAX_DISTRIBUTED=1 says so where it cannot be seen); a single process joins nothing.
    """
    if devices is None and os.environ.get("KD_JAX_DEVICES"):
        try:
            devices = int(os.environ["KD_JAX_DEVICES"])
        except ValueError:
            raise UserError(
                f"KD_JAX_DEVICES: got {os.environ['KD_JAX_DEVICES']!r}, takes a number"
            ) from None
    if devices is not None:
        if devices < 1:
            raise UserError(f"--devices: got {devices}, takes at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
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
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if all(given) and int(given[1] or 1) > 1:
        jax.distributed.initialize(
            coordinator_address=given[0],
            num_processes=int(given[1] or 1),
            process_id=int(given[2] or 0),
        )
    elif any(test(os.environ[name]) for name, test in _CLUSTERS if os.environ.get(name)):
        jax.distributed.initialize()


def is_main() -> bool:
    """Is this the process that writes what only one may write?"""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Is this the only process?"""
    return jax.process_count() == 1


def barrier(name: str) -> None:
    """Waits until every process is here; nothing with one process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def everywhere(flag: bool) -> bool:
    """Is `flag` true in every process?"""
    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).all())
