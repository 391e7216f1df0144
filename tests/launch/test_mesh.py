import jax
import pytest
from jax.sharding import AxisType

from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh, mesh_shape


@pytest.mark.parametrize(
    "config, shape",
    [
        (MeshConfig(), (8, 1, 1, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 1, 1, 2)),
        (MeshConfig(data=1, fsdp=1, tensor=8), (1, 1, 1, 1, 8)),
        (MeshConfig(expert=2, context=2), (2, 1, 2, 2, 1)),
    ],
)
def test_minus_one_takes_the_rest(config, shape):
    assert mesh_shape(config, 8) == shape


@pytest.mark.parametrize(
    "config, words",
    [
        (MeshConfig(fsdp=3), ["--mesh.fsdp 3", "8 devices", "divide"]),
        (MeshConfig(data=2, fsdp=2), ["--mesh.data 2", "8 devices", "make up"]),
        (MeshConfig(data=-1, fsdp=-1), ["at most one"]),
        (MeshConfig(tensor=0), ["--mesh.tensor 0", "1 or more"]),
        (MeshConfig(tensor=-2), ["--mesh.tensor -2", "1 or more"]),
    ],
)
def test_what_cannot_be_is_one_line(config, words):
    with pytest.raises(UserError) as caught:
        mesh_shape(config, 8)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_axes_are_auto_and_devices_may_be_named():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 5
    assert set(mesh.devices.flat) == set(jax.devices()[:4])
    assert make_mesh().shape["data"] == 8


class Device:
    """A device of one of several slices."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, id, slice_index):
        self.id, self.slice_index = id, slice_index


def test_slices_are_divided_by_data_alone(monkeypatch):
    # Listed in an order in which no axis follows the slices.
    devices = [Device(i, i % 2) for i in range(8)]
    monkeypatch.setattr("kd_jax.launch.mesh.Mesh", lambda grid, *_, **__: grid)
    grid = make_mesh(MeshConfig(data=4, tensor=2), devices)
    slices = [[device.slice_index for device in row.flat] for row in grid]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(UserError, match="--mesh.data 1 does not divide over the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=8), devices)
