"""The roofline's arithmetic, and which of its three parts bounds a step."""

import pytest

from kd_jax.launch.planning import roofline
from kd_jax.launch.planning.chips import Chip

CHIP = Chip("made up", flops=100.0, hbm=1000.0, hbm_bandwidth=10.0, ici_bandwidth=5.0)


def of(**changes):
    given = {
        "flops": 4000.0,
        "model_flops": 3000.0,
        "memory": 50.0,
        "traffic": {"all-gather": 10.0},
    }
    return roofline.of(CHIP, 8, **(given | changes))


def test_a_step_takes_the_longest_of_the_three():
    found = of()
    assert found == {
        "compute": 4000 / (8 * 100),
        "memory": 5.0,
        "network": 2.0,
        "step": 5.0,
        "utilization": 3000 / (8 * 100 * 5.0),
    }
    assert of(memory=70.0)["step"] == 7.0
    assert of(traffic={"all-gather": 20.0, "all-reduce": 25.0})["step"] == 9.0


def test_utilization_is_the_share_without_recomputation_where_compute_bounds():
    assert of(memory=0.0)["utilization"] == pytest.approx(3 / 4)
    assert of(flops=0.0, model_flops=0.0, memory=0.0, traffic={})["utilization"] == 0.0


def test_what_goes_between_slices_takes_no_time_and_that_is_said():
    assert of(traffic={"dcn": 1e9})["network"] == 0.0
    assert any("between slices (dcn)" in line for line in roofline.ASSUMPTIONS)
