"""Likelihood displacement: where probability goes when a preference is learnt.

Training on a preference may lower the chosen completion's probability too, to the gain of a third.
CHES (centred hidden embedding similarity) tells beforehand which pairs will do so. Razin et al.
2024, arXiv 2410.08847.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def ches(
    chosen: ArrayLike,
    chosen_weights: ArrayLike,
    rejected: ArrayLike,
    rejected_weights: ArrayLike,
    *,
    length_normalised: bool = False,
) -> jax.Array:
    """<S+, S-> - |S+|^2 of each pair, f32 [P]; the larger, the more the pair displaces.

    chosen, rejected [P, T, D]: the last hidden states, those that the unembedding multiplies.
    weights [P, T]: not 0 where a state predicts a token of the completion: from the prompt's last
        token to the one before the completion's last. S+ and S- are the sums over these.
    length_normalised: the means in the place of the sums, which the paper advises for filtering.
    The states are those of the model before training. Of completions of one token it is 0, because
    both have the same state. Definition 2 (number UNVERIFIED).
    """
    reduce = _means if length_normalised else _sums
    plus, minus = reduce(chosen, chosen_weights), reduce(rejected, rejected_weights)
    return (plus * minus).sum(-1) - (plus * plus).sum(-1)


def last_state_cosine(
    chosen: ArrayLike, chosen_weights: ArrayLike, rejected: ArrayLike, rejected_weights: ArrayLike
) -> jax.Array:
    """The cosine of the states that predict the last tokens of both completions, f32 [P].

    Arguments as for `ches`, which the paper compares with similarities of this kind.
    """

    def last(states: ArrayLike, weights: ArrayLike) -> jax.Array:
        at = jnp.asarray(weights) != 0
        # Padding behind the last token has its running count, but no weight.
        only = at & (at.cumsum(-1) == at.sum(-1, keepdims=True))
        return _sums(states, only)

    first, second = last(chosen, chosen_weights), last(rejected, rejected_weights)
    size = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / jnp.where(size == 0, 1.0, size)


def edit_similarity(chosen: Sequence[int], rejected: Sequence[int]) -> float:
    """1 - the edits that turn one into the other / the longer one's length, in [0, 1].

    Edits are insertions, deletions and substitutions of tokens (Levenshtein). ValueError where both
    are empty.
    """
    if not len(chosen) and not len(rejected):
        raise ValueError("chosen, rejected: got two empty ones, takes at least one token")
    row = list(range(len(rejected) + 1))
    for i, token in enumerate(chosen, 1):
        before, row = row, [i]
        for j, other in enumerate(rejected, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (token != other)))
    return 1 - row[-1] / max(len(chosen), len(rejected))


def least_displacing(scores: ArrayLike, keep: float) -> np.ndarray:
    """The places of the share `keep` of pairs with the lowest scores, in their own order.

    scores [P]: of `ches`, better length-normalised. At least one is kept; of equal scores the first
    ones. ValueError unless 0 < keep <= 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: got {keep}, takes a number above 0 and up to 1")
    x = np.asarray(scores, np.float64)
    return np.sort(np.argsort(x, kind="stable")[: max(1, round(keep * len(x)))])


class Gains(NamedTuple):
    """ids [P, k], the tokens that gained most, and change [P, k], by how much."""

    ids: np.ndarray
    change: np.ndarray


def gains(before: ArrayLike, after: ArrayLike, k: int) -> Gains:
    """The k tokens that gained most probability, the most first.

    before, after [P, V]: log-probabilities of the next token under the two models.
    """
    change = np.exp(np.asarray(after, np.float64)) - np.exp(np.asarray(before, np.float64))
    ids = np.argsort(-change, axis=-1, kind="stable")[:, :k]
    return Gains(ids, np.take_along_axis(change, ids, -1))


def _sums(states: ArrayLike, weights: ArrayLike) -> jax.Array:
    x, kept = jnp.asarray(states, jnp.float32), jnp.asarray(weights) != 0
    return jnp.where(kept[..., None], x, 0.0).sum(-2)


def _means(states: ArrayLike, weights: ArrayLike) -> jax.Array:
    count = (jnp.asarray(weights) != 0).sum(-1, keepdims=True)
    return _sums(states, weights) / jnp.maximum(count, 1)
