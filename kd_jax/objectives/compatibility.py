"""A new version of a model that answers as the old one did where it does not know better."""

from collections.abc import Callable

import jax

from kd_jax.losses.compatibility import muscle
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.teachers import against
from kd_jax.types import Model, Objective, Policy

# (student's, old and new logits [..., V], targets int [...]) -> [...]
Loss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def compatible(
    student: Model,
    old: Model,
    new: Model,
    loss: Loss = muscle,
    scale: float = 1.0,
    *,
    hard: float = 0.0,
    vocabulary: int | None = None,
    policy: Policy = own_weights,
) -> Objective:
    """scale * loss(student, old, new, targets) + hard * NLL: a mean over examples or tokens.

    old, new: the task model that is replaced and the one that takes its place, of any
        architecture; their weights are frozen["old"] and frozen["new"], and no gradient reaches
        them. The student starts from the new one (its adapter, in the paper).
    loss: `losses.compatibility.muscle`, or `masked_kl` with another mask.
    hard: of the cross-entropy, which the paper adds only where the accuracies of the two lie far
        apart (0.0).
    Class logits [B, C] with targets and weights [B], or tokens, streamed over the vocabulary;
    vocabulary: as in `distil.token_divergence`, for heads padded to different sizes.

    Source: Echterhoff et al. 2024 (MUSCLE), arXiv 2407.09435.
    """

    def soft(logits, others, targets) -> jax.Array:
        of_old, of_new = others
        return loss(logits, of_old, of_new, targets)

    return against(student, {"old": old, "new": new}, soft, scale, hard, vocabulary, policy)
