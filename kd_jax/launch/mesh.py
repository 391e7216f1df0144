"""Device meshes with the axes data, fsdp and tensor."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from kd_jax.launch.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are divided; -1 on at most one axis means all that the others leave."""

    data: int = -1
    """Copies of the model; each takes its part of the batch."""
    fsdp: int = 1
    """Ways in which parameters and optimiser state are split; the batch is split too."""
    tensor: int = 1
    """Ways in which heads, MLP and vocabulary are split."""


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) over this many devices; UserError where it cannot be."""
    sizes = dataclasses.astuple(config)
    given = " ".join(f"--mesh.{name} {size}" for name, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"{given}: each takes 1 or more, and at most one takes -1 (the rest)")
    fixed = math.prod(size for size in sizes if size != -1)
    if devices % fixed or (-1 not in sizes and fixed != devices):
        verb = "divide" if -1 in sizes else "make up"
        raise UserError(f"{given} does not {verb} the {devices} devices there are")
    data, fsdp, tensor = (devices // fixed if size == -1 else size for size in sizes)
    return data, fsdp, tensor


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, or the ones given, which need not be attached to this machine.

    Its axes are Auto: the compiler places what no constraint names. UserError when the sizes do
    not divide the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(config or MeshConfig(), len(devices))
    # Splitting lets (64, 4) stand on a 16x16 torus; jax.make_mesh refuses it on some TPUs.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
