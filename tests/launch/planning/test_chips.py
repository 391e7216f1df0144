"""Peaks by topology and by the name that jax shows."""

import types

import jax
import pytest

from kd_jax.launch.planning import chips, topologies


def test_topologies_and_devices_name_the_same_chips():
    kinds = {
        "v4": "TPU v4",
        "v5e": "TPU v5 lite",
        "v5p": "TPU v5",
        "v6e": "TPU v6 lite",
        "tpu7x": "TPU7x",
    }
    assert set(kinds) == set(chips.TPUS)
    for name, kind in kinds.items():
        device = types.SimpleNamespace(device_kind=kind)
        assert chips.of_device(device) is chips.of_topology(f"{name}:2x2") is chips.TPUS[name]


def test_what_is_not_known_has_no_chip():
    assert chips.of_topology("cpu:8") is None
    assert chips.of_device(jax.devices("cpu")[0]) is None
    assert chips.of_device(types.SimpleNamespace(device_kind="NVIDIA H100 PCIe")) is None


def test_units():
    """Slips of a thousand: FLOPs for each byte that is read or sent lie where chips are built."""
    for chip in chips.KINDS.values():
        assert 100 < chip.flops / chip.hbm_bandwidth < 700
        assert 700 < chip.flops / chip.ici_bandwidth < 4000
        assert 1 < chip.hbm / chip.hbm_bandwidth * 100 < 6


@pytest.mark.libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_names_of_devices_are_libtpus(name):
    device = topologies.devices_of(name)[0]
    assert chips.of_device(device) is chips.of_topology(name)
