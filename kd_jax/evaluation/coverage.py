"""Coverage: how often one of several samples is right."""

import numpy as np
from jax.typing import ArrayLike


def pass_at_n(p: ArrayLike, *, n: int) -> np.ndarray:
    """1 - (1 - p)**n, exact, f64 of the shape of p: the chance that one of n samples is right.

    p: the probability that one sample is right, in [0, 1]; of a classifier the label's. n at
    least 1; n = 1 is p itself.
    """
    p = np.asarray(p, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p: got {p.min()} to {p.max()}, takes probabilities")
    _check_n(n)
    with np.errstate(divide="ignore"):
        return -np.expm1(n * np.log1p(-p))


def estimated_pass_at_n(right: ArrayLike, samples: ArrayLike, *, n: int) -> np.ndarray:
    """1 - C(samples - right, n) / C(samples, n), f64: unbiased for `pass_at_n` of each problem.

    right, samples: integers of one shape; of `samples` independent samples of a problem so many
    are right. It is the share of all choices of n of them with a right one, and 1 where fewer
    than n are wrong. n is at most the number of samples. Chen et al. 2021 (arXiv 2107.03374),
    equation 1.
    """
    right, samples = np.asarray(right), np.asarray(samples)
    _check_n(n)
    if right.shape != samples.shape:
        raise ValueError(f"samples: got shape {samples.shape}, takes that of right, {right.shape}")
    if not ((right >= 0) & (right <= samples)).all():
        raise ValueError("right: takes numbers from 0 to samples")
    if not (samples >= n).all():
        raise ValueError(f"n: got {n}, takes at most the number of samples, {samples.min()}")
    drawn = np.arange(n)
    wrong = np.maximum((samples - right)[..., None] - drawn, 0)
    return 1.0 - np.prod(wrong / (samples[..., None] - drawn), -1)


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n: got {n}, takes numbers from 1")
