"""DDK's weights of domains: more is drawn from where a student is farthest behind its teacher.

A training goes in rounds of K steps (`launch.rounds`). Between two of them the host measures the
perplexity of the student in each domain and moves the weights; `sources.mixture` draws the rows of
the next round by them. The weights are all the state there is: the rows are a pure function of
(seed, step, weights), and a round's step numbers tell the round.

Liu et al. 2024, arXiv 2407.16154 (DDK).
"""

import numpy as np
from jax.typing import ArrayLike


def initial_weights(student: ArrayLike, teacher: ArrayLike) -> np.ndarray:
    """softmax(student / teacher): f64[N], N domains, before the first round.

    student, teacher: perplexities [N], exp of the mean NLL of a token; the ratio itself is the
    logit, without temperature. The paper draws the first round uniformly all the same: these
    weights are the history that the first `updated_weights` starts from.
    ValueError unless all are positive and finite. Source: arXiv 2407.16154, equation 1.
    """
    return np.exp(_log_softmax(_ratios(student, teacher)))


def updated_weights(
    weights: ArrayLike, student: ArrayLike, teacher: ArrayLike, *, alpha: float = 0.5
) -> np.ndarray:
    """alpha psi / sum(psi) + (1 - alpha) / N, psi = weights * exp(student / teacher): f64[N].

    weights: [N], those before, non-negative with sum 1. student, teacher: perplexities [N] now.
    alpha in [0, 1]: 0 is uniform for ever; every weight is at least (1 - alpha) / N, so that no
    domain is lost from sight. psi is made in log space: a student that has never seen a domain has
    ratios of hundreds. A weight of 0 stays (1 - alpha) / N.
    ValueError for values out of range. Source: arXiv 2407.16154, equations 2 and 3, algorithm 1.
    """
    ratios, weights = _ratios(student, teacher), np.asarray(weights, np.float64)
    if weights.shape != ratios.shape:
        raise ValueError(f"weights: got shape {weights.shape}, takes {ratios.shape}")
    if not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
        raise ValueError(f"weights: got {weights}, takes non-negative numbers with sum 1")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, takes [0, 1]")
    with np.errstate(divide="ignore"):
        log_psi = np.log(weights) + ratios
    return alpha * np.exp(_log_softmax(log_psi)) + (1 - alpha) / len(weights)


def _ratios(student: ArrayLike, teacher: ArrayLike) -> np.ndarray:
    of_student, of_teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if of_student.ndim != 1 or of_student.shape != of_teacher.shape or not len(of_student):
        raise ValueError(
            f"student, teacher: got shapes {of_student.shape} and {of_teacher.shape}, take one "
            "perplexity for each of N domains"
        )
    for name, values in (("student", of_student), ("teacher", of_teacher)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name}: got {values}, takes perplexities, positive and finite")
    return of_student / of_teacher


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
