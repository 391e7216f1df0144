"""Flips: what changes for whom when one model replaces another.

Source: Echterhoff et al. 2024 (MUSCLE), arXiv 2407.09435; the rate of negative flips is Yan et al.
2021, arXiv 2011.09161.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike


def negative_flip_rate(before: ArrayLike, after: ArrayLike) -> float:
    """The share of the N samples that were right before and are wrong after, in [0, 1].

    before, after: [N], whether each model is right (booleans, or 0 and 1). At most
    1 - accuracy(after), and at least accuracy(before) - accuracy(after).
    """
    was, now = _right(before, after)
    return float(np.mean(was & ~now))


def positive_flip_rate(before: ArrayLike, after: ArrayLike) -> float:
    """The share of the samples that were wrong before and are right after, in [0, 1].

    The accuracies differ by `positive_flip_rate` - `negative_flip_rate`.
    """
    was, now = _right(before, after)
    return float(np.mean(~was & now))


def changed_error_rate(before: ArrayLike, after: ArrayLike, targets: ArrayLike) -> float:
    """The share of the samples that are wrong after, with another answer than before: NFR_mc.

    before, after: [N], the answers of the two models; targets [N]. The paper's rate for multiple
    choice: a wrong answer that changes to another wrong one counts as well, so that it is at least
    `negative_flip_rate`.
    """
    was, now, right = _alike(before=before, after=after, targets=targets)
    return float(np.mean((now != right) & (was != now)))


class SmoothFlips(NamedTuple):
    """Of a score that is no yes or no: shares of the samples that gain and lose, and by how much.

    positive_rate, negative_rate: in [0, 1]. mean_gain, mean_regression: over those that gain, and
    over those that lose; not negative, in the score's unit; 0 where there are none.
    """

    positive_rate: float
    negative_rate: float
    mean_gain: float
    mean_regression: float


def smooth_flips(before: ArrayLike, after: ArrayLike) -> SmoothFlips:
    """D = after - before of each sample: mean(D > 0), mean(D < 0), and the mean |D| of either.

    before, after: [N], each model's score of every sample, larger is better (ROUGE, say).
    positive_rate * mean_gain - negative_rate * mean_regression is the difference of the means.
    """
    was, now = _alike(before=before, after=after)
    d = now.astype(np.float64) - was.astype(np.float64)
    if np.isnan(d).any():
        raise ValueError("before, after: got nan, take scores")
    gains, losses = d[d > 0], -d[d < 0]
    return SmoothFlips(
        len(gains) / len(d),
        len(losses) / len(d),
        float(gains.mean()) if len(gains) else 0.0,
        float(losses.mean()) if len(losses) else 0.0,
    )


def _right(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, ...]:
    found = _alike(before=before, after=after)
    for name, x in zip(("before", "after"), found, strict=True):
        if not np.isin(x, (0, 1)).all():
            raise ValueError(f"{name}: takes booleans or 0 and 1, whether each sample is right")
    return tuple(x.astype(bool) for x in found)


def _alike(**arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    """The arrays, all [N] with N >= 1; ValueError otherwise."""
    found = {name: np.asarray(x) for name, x in arrays.items()}
    like = next(iter(found.values()))
    for name, x in found.items():
        if x.ndim != 1 or not len(x) or len(x) != len(like):
            raise ValueError(f"{name}: got shape {x.shape}, takes [N], N samples of both models")
    return tuple(found.values())
