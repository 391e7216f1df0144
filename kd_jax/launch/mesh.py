"""Device meshes with the axes data, fsdp, expert, context and tensor."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from kd_jax.launch.errors import UserError

# Neighbours in the last axes are neighbours on the network: they talk the most.
AXES = ("data", "fsdp", "expert", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are divided; -1 on at most one axis means all that the others leave."""

    data: int = -1
    """Copies of the model; each takes its part of the batch. Slices are divided by this alone."""
    fsdp: int = 1
    """Ways in which parameters and optimiser state are split; the batch is split too."""
    expert: int = 1
    """Ways in which the experts of a mixture are split; the batch is split too."""
    context: int = 1
    """Ways in which sequences are split along their length."""
    tensor: int = 1
    """Ways in which heads, MLP and vocabulary are split."""


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes of AXES over this many devices; UserError where it cannot be."""
    sizes = dataclasses.astuple(config)
    given = " ".join(
        f"--mesh.{name} {size}"
        for name, size in zip(AXES, sizes, strict=True)
        if size != 1 or name == "data"
    )
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"{given}: each takes 1 or more, and at most one takes -1 (the rest)")
    fixed = math.prod(size for size in sizes if size != -1)
    if devices % fixed or (-1 not in sizes and fixed != devices):
        verb = "divide" if -1 in sizes else "make up"
        raise UserError(f"{given} does not {verb} the {devices} devices there are")
    return tuple(devices // fixed if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, or the ones given, which need not be attached to this machine.

    Its axes are Auto: the compiler places what no constraint names. Devices of several TPU slices,
    which a slower network joins, are divided by `data` first, so that only gradients cross it.

    UserError when the sizes do not divide the devices, or data not the slices.
    """
    config = config or MeshConfig()
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(config, len(devices))
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    if shape[0] % len(slices):
        raise UserError(
            f"--mesh.data {shape[0]} does not divide over the {len(slices)} slices there are"
        )
    within = (shape[0] // len(slices), *shape[1:])
    # Splitting lets (64, 4) stand on a 16x16 torus; jax.make_mesh refuses it on some TPUs.
    grids = [
        mesh_utils.create_device_mesh(within, slices[index], allow_split_physical_axes=True)
        for index in sorted(slices)
    ]
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))
