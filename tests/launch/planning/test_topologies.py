"""Names of topologies, and devices that are not there."""

import dataclasses

import pytest
from support import toy_experiment as toy

from kd_jax.launch import plan
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.planning import topologies


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cpu:64", ("cpu", "64", 1)),
        ("v5e:16x16", ("v5e", "16x16", 1)),
        ("v5p:4x4x8,slices=2", ("v5p", "4x4x8", 2)),
    ],
)
def test_names(name, parts):
    assert topologies.parse(name) == parts


@pytest.mark.parametrize(
    "name",
    ["v5e", "v5e:16", "v5e:4x4,2", "v5e:4x4,slices=0", "cpu:0", "cpu:2x2", "cpu:4,slices=2", "4x4"],
)
def test_what_is_no_name(name):
    with pytest.raises(UserError, match="--plan: got"):
        topologies.devices_of(name)


def test_more_simulated_devices_than_there_are():
    with pytest.raises(UserError, match="this process has 8 simulated devices"):
        topologies.devices_of("cpu:9")


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topologies, "_has_libtpu", lambda: False)
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **k: 1 / 0)
    with pytest.raises(UserError, match=r"pip install 'kd_jax\[tpu\]'"):
        topologies.devices_of("v5e:4x4")


@pytest.mark.libtpu
def test_a_tpu_that_is_not_there():
    assert len(topologies.devices_of("v4:2x2x1")) == 4
    with pytest.raises(UserError, match="unknown topology v5e:3x3"):
        topologies.devices_of("v5e:3x3")


@pytest.mark.libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5e:2x2,slices=2"])
def test_a_plan_for_it(topology):
    config = dataclasses.replace(toy.PRESETS["laptop"], mesh=MeshConfig(fsdp=4))
    rows = plan.of(toy, "support.toy_experiment", "laptop", config, topology)
    assert [row["verdict"] for row in rows] == [plan.FITS] * 2
    assert rows[0]["slices"] == rows[0]["devices"] // 4
    # Only what is summed over all rows crosses the slower network.
    assert ("dcn" in rows[0]["collectives"]) == (rows[0]["slices"] == 2)
    assert rows[0]["roofline"]["step"] > 0
