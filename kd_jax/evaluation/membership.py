"""Was a text among the training data? Membership scores, and what is read from them.

In all scores HIGHER means less likely a member (open-unlearning's orientation; RWKU's and MUSE's
are turned). The plain loss is such a score as it is: the mean negative log-likelihood of the
answer's tokens, its end-of-sequence token included (`scoring.mean_nll`). The scores of tokens
(`min_k`, `min_k_pp`, gradient norms) leave that token out: give them
`memorisation.without_last(weights)`.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def min_k(log_probs: ArrayLike, weights: ArrayLike, *, k: float = 0.4) -> jax.Array:
    """-mean of the n smallest log-probabilities, f32 [B], n = max(1, int(k L)); 0 where L is 0.

    log_probs, weights [B, T]: of the targets; the weights are only a mask, and L counts a row's
    tokens. k in (0, 1]: 0.4 in the TOFU and MUSE set-ups of open-unlearning, 0.2 in the paper.
    k = 1 is the mean loss. int() truncates as Python does, in double precision.
    Shi et al. 2023 (arXiv 2310.16789); the form is open-unlearning's, the text UNVERIFIED.
    """
    log_probs, weights = jnp.asarray(log_probs, jnp.float32), jnp.asarray(weights)
    if log_probs.ndim != 2 or log_probs.shape != weights.shape:
        raise ValueError(
            f"weights: got shape {weights.shape}, takes [B, T] as log_probs, {log_probs.shape}"
        )
    if not 0 < k <= 1:
        raise ValueError(f"k: got {k}, takes a number in (0, 1]")
    mask = weights != 0
    length = log_probs.shape[1]
    # By table, so that k L is not truncated in float32, where 0.4 * 5 might fall below 2.
    table = [0, *(max(1, int(k * n)) for n in range(1, length + 1))]
    n = jnp.asarray(table, jnp.int32)[mask.sum(1)]
    ordered = jnp.sort(jnp.where(mask, log_probs, jnp.inf), axis=1)
    taken = jnp.arange(length)[None, :] < n[:, None]
    return -jnp.where(taken, ordered, 0.0).sum(1) / jnp.maximum(n, 1)


def min_k_pp(
    log_probs: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    weights: ArrayLike,
    *,
    k: float = 0.4,
) -> jax.Array:
    """Min-K%++: `min_k` of z_t = (log p_t - mu_t) / sqrt(max(sigma_t^2, 1e-6)), f32 [B].

    mean, variance [B, T]: mu_t = sum_v p_v log p_v and the variance of log p_v under p, of each
    position's prediction (`losses.streaming.token_statistics`). The floor of the variance is
    open-unlearning's; others have none. Zhang et al. 2024 (arXiv
    2404.02936), text UNVERIFIED.
    """
    log_probs, mean, variance = (jnp.asarray(x, jnp.float32) for x in (log_probs, mean, variance))
    z = (log_probs - mean) / jnp.sqrt(jnp.maximum(variance, 1e-6))
    return min_k(z, weights, k=k)


def zlib_score(loss: ArrayLike, texts: Sequence[str]) -> np.ndarray:
    """loss / number of bytes of the text that zlib compresses, f64 [N]: a text's own difficulty.

    loss [N]: mean losses; texts: the N answers. Carlini et al. 2021 (arXiv 2012.07805).
    """
    loss = _scores("loss", loss)
    if len(texts) != len(loss):
        raise ValueError(f"texts: got {len(texts)}, takes one for each of {len(loss)} losses")
    return loss / np.array([len(zlib.compress(text.encode())) for text in texts], np.float64)


def reference_score(loss: ArrayLike, reference_loss: ArrayLike) -> np.ndarray:
    """loss - reference_loss, f64 [N]: how much likelier than under a model of the same kind.

    [N] each: mean losses, the second under a model that has not seen the texts.
    """
    loss, reference = _scores("loss", loss), _scores("reference_loss", reference_loss)
    if len(loss) != len(reference):
        raise ValueError(f"reference_loss: got {len(reference)}, takes {len(loss)}, as of loss")
    return loss - reference


def gradient_norm_score(norms: ArrayLike) -> np.ndarray:
    """The mean over parameter tensors of each one's gradient norm, f64 [N].

    norms [N, tensors] (`objectives.score.gradient_norms`). open-unlearning's mean of norms; the
    norm of the whole gradient would be dominated by the largest tensor.
    """
    norms = np.asarray(norms, np.float64)
    if norms.ndim != 2 or norms.size == 0:
        raise ValueError(f"norms: got shape {norms.shape}, takes a non-empty [N, tensors]")
    return norms.mean(1)


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """P(other's score > member's score) + P(tie) / 2, exact, in [0, 1].

    members [n]: scores of the texts to be found out (the forget set). others [m]: of texts of the
    same kind that no model has seen (a holdout set). 1: the first are plainly members, 0.5: cannot
    be told, below 0.5: less likely than unseen text, over-forgotten.
    """
    members, others = np.sort(_scores("members", members)), _scores("others", others)
    below = np.searchsorted(members, others, side="left").sum()
    not_above = np.searchsorted(members, others, side="right").sum()
    return float(int(below) + int(not_above)) / (2.0 * len(members) * len(others))


def true_positive_rate(members: ArrayLike, others: ArrayLike, *, at: float) -> float:
    """The largest share of members found at a share of false alarms of at most `at`.

    members [n], others [m]: scores; those at or below a threshold are called members, and all
    thresholds are tried. at in [0, 1]; below 1 / m no other may be called one.
    Carlini et al. 2022 (arXiv 2112.03570): what an attack is worth shows at 0.01 and below.
    """
    if not 0 <= at <= 1:
        raise ValueError(f"at: got {at}, takes a number in [0, 1]")
    members, others = _scores("members", members), np.sort(_scores("others", others))
    allowed = int(at * len(others) + 1e-9)  # 0.29 * 100 is 29 false alarms, not 28
    if allowed >= len(others):
        return 1.0
    return float((members < others[allowed]).mean())


def privacy_leakage(model_auc: float, retrained_auc: float = 0.5) -> float:
    """PrivLeak in percent: 100 ((1 - AUC) - (1 - AUC')) / (1 - AUC' + 1e-10).

    model_auc, retrained_auc: `auc` of the `min_k` scores (k = 0.4) of the model under test and of
    one trained without the forget set; 0.5 where there is none. 0 is ideal. NEGATIVE: members
    still look like members, -100 for a model that memorised; POSITIVE: over-forgotten.

    open-unlearning's form of MUSE's metric (arXiv 2407.06460, section 3); 1 - AUC is MUSE's AUC.
    """
    _check_auc(model_auc=model_auc, retrained_auc=retrained_auc)
    return 100.0 * (retrained_auc - model_auc) / (1.0 - retrained_auc + 1e-10)


def relative_difference(model_auc: float, retrained_auc: float) -> float:
    """100 (AUC - AUC') / (AUC' + 1e-10), in percent; open-unlearning's rel_diff, not turned."""
    _check_auc(model_auc=model_auc, retrained_auc=retrained_auc)
    return 100.0 * (model_auc - retrained_auc) / (retrained_auc + 1e-10)


def _scores(name: str, x: ArrayLike) -> np.ndarray:
    array = np.asarray(x, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: got shape {array.shape}, takes a non-empty [N]")
    if np.isnan(array).any():
        raise ValueError(f"{name}: got {int(np.isnan(array).sum())} NaN, takes numbers")
    return array


def _check_auc(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value}, takes a number in [0, 1]")
