"""Devices that need not be there: simulated CPUs, and TPU slices as libtpu describes them."""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from kd_jax.launch.errors import UserError

EXAMPLES = "v5e:4x4, v5p:4x4x8, v5e:16x16,slices=2, cpu:64"


class Topology(NamedTuple):
    """A name taken apart: kind "cpu", "v4", "v5e", ...; shape "4x4", or a number of CPUs."""

    kind: str
    shape: str
    slices: int


def parse(name: str) -> Topology:
    """UserError for what is no name of a topology; whether libtpu knows it is seen later."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:,slices=(\d+))?", name)
    if found is None:
        raise UserError(f"--plan: got {name}, takes names such as {EXAMPLES}")
    kind, shape, slices = found[1], found[2], int(found[3] or 1)
    one_number = shape.isdecimal()
    if slices < 1 or one_number != (kind == "cpu") or (one_number and int(shape) < 1):
        raise UserError(f"--plan: got {name}, takes names such as {EXAMPLES}")
    if kind == "cpu" and slices > 1:
        raise UserError(f"--plan: got {name}, but CPUs have no slices")
    return Topology(kind, shape, slices)


def devices_of(name: str) -> list[Any]:
    """The devices of a topology, in all its slices.

    UserError for a name that is not known, and where libtpu is not installed.
    """
    kind, shape, slices = parse(name)
    if kind == "cpu":
        return _cpus(int(shape))
    # Before libtpu is loaded: the first two keep it from asking for a TPU, the third lets two
    # plans be made at the same time.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # A v4 chip is one device, as its pods show it.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **options
        ).devices
    except Exception as error:  # jax raises several kinds, none for this alone
        if not _has_libtpu():
            raise UserError(
                f"--plan {name}: libtpu is not installed: pip install 'kd_jax[tpu]'"
            ) from None
        first = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
        raise UserError(f"--plan: unknown topology {name} ({first})") from None


def _cpus(count: int) -> list[Any]:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend has started; it may have enough
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--plan cpu:{count}: this process has {len(devices)} simulated devices")
    return devices[:count]


def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None
