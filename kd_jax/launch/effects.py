"""Figures over repetitions, as claims and tables take them."""

from collections.abc import Sequence

import numpy as np

from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch.claims import Effect


def over_seeds(values: Sequence[float] | np.ndarray) -> Effect:
    """The mean of one value a seed, with Student's interval; a single value reads [v, v]."""
    if len(values) == 1:
        return Effect(*[float(values[0])] * 3)
    return Effect(*mean_interval(np.asarray(values)))


def shown(effect: Effect) -> Effect | float:
    """For tables: a figure without an interval is a plain number."""
    return effect if effect.low < effect.high else effect.estimate
