"""Figures over repetitions."""

import numpy as np
import pytest
from scipy import stats

from kd_jax.launch.claims import Effect
from kd_jax.launch.effects import over_seeds, shown


def test_the_interval_is_students():
    values = [1.0, 2.0, 4.0]
    found = over_seeds(np.array(values))
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert tuple(found) == pytest.approx((7 / 3, low, high))
    assert shown(found) is found


def test_one_value_has_no_interval():
    assert over_seeds([3.0]) == Effect(3.0, 3.0, 3.0)
    assert shown(over_seeds([3.0])) == 3.0
