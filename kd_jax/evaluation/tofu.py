"""TOFU's metrics (arXiv 2401.06121) as numpy functions of per-sample arrays, in float64.

Losses are per-sequence mean negative log-likelihoods in nats (`scoring.mean_nll`): the answer and
one end-of-sequence token, divided by their number. N samples, P perturbed (wrong) answers each.

The benchmark's four sets and what is "right" in them: the forget and retain sets compare the
PARAPHRASED answer with the perturbed ones, real authors and world facts the answer itself.
Reference runs take at most the first 300 rows of a set.

    python -m kd_jax.evaluation.tofu --logs FOLDER [--retain-logs FOLDER] [--json FILE]

scores saved per-sample logs in the layout that TOFU's authors publish (`tofu_logs`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import stats

# What is reported of each set; model utility is the harmonic mean over the last three.
SETS = ("forget", "retain", "real_authors", "world_facts")


def probability(answer_loss: ArrayLike) -> np.ndarray:
    """exp(-loss) [N]: the geometric mean of the token probabilities of the answer, in (0, 1].

    Section 2.2. The set's figure for forget and retain is its mean.
    """
    return np.exp(-_losses("answer_loss", answer_loss, 1))


def choice_probability(right_loss: ArrayLike, wrong_loss: ArrayLike) -> np.ndarray:
    """p(right) / (p(right) + sum_p p(wrong_p)) [N], each p = exp(-loss).

    right_loss [N], wrong_loss [N, P]. Section 2.2: the probability of real authors and world
    facts, with the plain answer as the right one. Computed from loss differences, so that long
    answers do not underflow (open-unlearning adds 1e-10 to the denominator instead).
    """
    right, wrong = _right_and_wrong(right_loss, wrong_loss)
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(right[:, None] - wrong).sum(1))


def truth_ratio(right_loss: ArrayLike, wrong_loss: ArrayLike) -> np.ndarray:
    """R = exp(right_loss - mean_p wrong_loss_p) [N]: wrong over right, geometric mean.

    right_loss [N], wrong_loss [N, P]. R = 1 where right and wrong answers are equally likely; a
    model that knows the answer has R < 1. This is what TOFU's aggregation script, its KS test and
    the published tables use; the paper's formula is `truth_ratio_arithmetic`.
    """
    right, wrong = _right_and_wrong(right_loss, wrong_loss)
    with np.errstate(over="ignore"):
        return np.exp(right - wrong.mean(1))


def truth_ratio_arithmetic(right_loss: ArrayLike, wrong_loss: ArrayLike) -> np.ndarray:
    """R = mean_p exp(-wrong_loss_p) / exp(-right_loss) [N]: the paper's formula.

    At least the geometric `truth_ratio` (Jensen).
    """
    right, wrong = _right_and_wrong(right_loss, wrong_loss)
    with np.errstate(over="ignore"):
        return np.exp(right[:, None] - wrong).mean(1)


def truth_ratio_guarded(right_loss: ArrayLike, wrong_loss: ArrayLike) -> np.ndarray:
    """R = exp(-mean_p wrong_loss_p) / (exp(-right_loss) + 1e-10) [N]: open-unlearning's form.

    `truth_ratio` but for right answers less likely than about 1e-8 a token, where the guard pulls
    it down.
    """
    right, wrong = _right_and_wrong(right_loss, wrong_loss)
    return np.exp(-wrong.mean(1)) / (np.exp(-right) + 1e-10)


def right_share(right_loss: ArrayLike, wrong_loss: ArrayLike) -> np.ndarray:
    """1 / (1 + R) [N], R the geometric truth ratio: right / (right + wrong), in [0, 1].

    open-unlearning's `prob_mean`, without its guard of 1e-10.
    """
    right, wrong = _right_and_wrong(right_loss, wrong_loss)
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(right - wrong.mean(1)))


def forget_truth_ratio(ratios: ArrayLike) -> float:
    """mean_i min(R_i, 1 / R_i), in [0, 1]; 1 where right cannot be told from wrong.

    ratios: [N], wrong over right. The forget set's figure (aggregate_eval_stat.py).
    """
    r = _ratios(ratios)
    with np.errstate(divide="ignore"):
        return float(np.minimum(r, 1.0 / r).mean())


def retain_truth_ratio(ratios: ArrayLike) -> float:
    """mean_i max(0, 1 - R_i), in [0, 1]; 1 where wrong answers are never likely.

    ratios: [N], wrong over right. The figure of retain, real authors and world facts.
    """
    return float(np.maximum(0.0, 1.0 - _ratios(ratios)).mean())


def model_utility(values: Mapping[str, float]) -> float:
    """The harmonic mean of nine figures, 9 / sum 1 / v; 0 if any is 0.

    values: probability, ROUGE-L recall and truth ratio of retain, real authors and world facts,
    under the names of `UTILITY`; each in [0, 1]. The forget set is no part of it. Section 2.2.
    A collapsed model scores exactly 0: look at the nine parts too.
    """
    if set(values) != set(UTILITY):
        raise ValueError(f"values: got {sorted(values)}, takes {sorted(UTILITY)}")
    faults = {name: v for name, v in values.items() if not 0.0 <= v <= 1.0}
    if faults:
        raise ValueError(f"values: got {faults}, takes numbers in [0, 1]")
    return harmonic_mean([values[name] for name in UTILITY])


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum 1 / v of n numbers from 0; 0 if any is 0."""
    parts = np.asarray(values, np.float64)
    if parts.size == 0 or not (parts >= 0).all():
        raise ValueError(f"values: got {list(values)}, takes at least one number, all from 0")
    return 0.0 if (parts == 0).any() else float(len(parts) / (1.0 / parts).sum())


UTILITY = tuple(
    f"{group}/{metric}" for group in SETS[1:] for metric in ("probability", "rouge", "truth_ratio")
)


class ForgetQuality(NamedTuple):
    """statistic: Kolmogorov and Smirnov's D in [0, 1]; p_value: forget quality, high is good."""

    statistic: float
    p_value: float


def forget_quality(unlearned: ArrayLike, retrained: ArrayLike) -> ForgetQuality:
    """The two-sample KS test between truth ratios on the forget set (section 2.2).

    unlearned [n]: of the model under test. retrained [m]: of one trained without the forget set.
    The p-value is exact up to samples of 10000, asymptotic above (scipy's rule). Unchanged by
    R -> 1 / R or log R. The sample size drives p: never compare it across forget sets.
    """
    a, b = _ratios(unlearned, "unlearned"), _ratios(retrained, "retrained")
    statistic, p_value = np.asarray(stats.ks_2samp(a, b), np.float64)
    return ForgetQuality(float(statistic), float(p_value))


def ks_statistic(first: jax.Array, second: jax.Array) -> jax.Array:
    """sup_x |F_first(x) - F_second(x)| of two samples [n], [m]; f32 scalar; jittable."""
    first, second = jnp.sort(jnp.asarray(first)), jnp.sort(jnp.asarray(second))
    pooled = jnp.concatenate([first, second])
    n, m = float(first.size), float(second.size)
    below_first = jnp.searchsorted(first, pooled, side="right").astype(jnp.float32)
    below_second = jnp.searchsorted(second, pooled, side="right").astype(jnp.float32)
    # One division, at the end: equal samples give exactly 0, while n * m < 2**24.
    return jnp.abs(below_first * m - below_second * n).max() / (n * m)


def _losses(name: str, x: ArrayLike, ndim: int) -> np.ndarray:
    array = np.asarray(x, np.float64)
    if array.ndim != ndim or array.size == 0:
        wanted = "[N]" if ndim == 1 else "[N, P]"
        raise ValueError(f"{name}: got shape {array.shape}, takes a non-empty {wanted}")
    if np.isnan(array).any():
        raise ValueError(f"{name}: got {int(np.isnan(array).sum())} NaN, takes numbers")
    return array


def _ratios(x: ArrayLike, name: str = "ratios") -> np.ndarray:
    array = _losses(name, x, 1)
    if (array < 0).any():
        raise ValueError(f"{name}: got {array.min()}, takes numbers from 0")
    return array


def _right_and_wrong(right_loss: ArrayLike, wrong_loss: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    right, wrong = _losses("right_loss", right_loss, 1), _losses("wrong_loss", wrong_loss, 2)
    if len(right) != len(wrong):
        raise ValueError(
            f"wrong_loss: got {len(wrong)} rows, takes one for each of {len(right)} right losses"
        )
    return right, wrong


if __name__ == "__main__":
    # The command imports this module by its name, so it cannot be imported above.
    from kd_jax.evaluation import tofu_command

    raise SystemExit(tofu_command.main())
