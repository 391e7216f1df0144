"""Intervals for what is reported: over seeds (t) and over samples (bootstrap)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """A two-sided confidence interval, in the units of what was measured."""

    estimate: float
    low: float
    high: float


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean of n independent runs +- t_{n-1} s / sqrt(n), s the sample standard deviation.

    values: [n], n >= 2. Student's interval, exact for normal values.
    """
    x = _sample("values", values, 2)
    _check_level(level)
    estimate = x.mean()
    half = stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(float(estimate), float(estimate - half), float(estimate + half))


def paired_difference(first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Interval:
    """`mean_interval` of first - second: runs paired by seed, [n] each, n >= 2.

    What the members of a pair share (the seed's data order and initialisation) cancels, so it is
    narrower than the two intervals apart when they rise and fall together.
    """
    a, b = _sample("first", first, 2), _sample("second", second, 2)
    if len(a) != len(b):
        raise ValueError(f"second: got {len(b)} values, takes one for each of {len(a)} of first")
    return mean_interval(a - b, level=level)


def bootstrap_interval(
    samples: ArrayLike,
    *,
    seed: int,
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """The percentile bootstrap interval of a statistic of samples (Efron 1979).

    samples: [n, ...], n >= 2; rows are drawn with replacement, so that columns stay together
    (two models' scores of the same sample). statistic: [n, ...] -> number; the estimate is its
    value on the samples as they are. The same seed gives the same interval. It covers the choice
    of samples, not of training seeds.
    """
    x = np.asarray(samples, np.float64)
    if x.ndim == 0 or len(x) < 2:
        raise ValueError(f"samples: got shape {x.shape}, takes at least two rows")
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, takes a number from 1")
    rng = np.random.default_rng(seed)
    draws = [float(statistic(x[rng.integers(0, len(x), len(x))])) for _ in range(resamples)]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(statistic(x)), float(low), float(high))


def _sample(name: str, values: ArrayLike, least: int) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < least:
        raise ValueError(f"{name}: got shape {x.shape}, takes [n] with n >= {least}")
    return x


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: got {level}, takes a number in (0, 1)")
