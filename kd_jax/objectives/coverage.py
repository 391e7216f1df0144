"""Direct coverage optimisation as terms of `supervise`: training for pass@n.

supervise(model, {"dco": label_coverage(16)}, metrics={"accuracy": label_accuracy})
"""

from collections.abc import Callable

import jax
from jax.typing import ArrayLike

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.coverage import dco, estimated_dco
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.objectives.supervise import TermOf
from kd_jax.objectives.terms import sequence_weights
from kd_jax.types import Batch, ModelOutput, Term, weighted_sum


def label_coverage(n: ArrayLike, of: Callable[..., jax.Array] = dco) -> TermOf:
    """`losses.coverage.dco` of labels, averaged over examples by batch["weights"] [B].

    of: `dco_factor` in its place is a metric, the part of the gradient that is left.
    """

    def term(output: ModelOutput, batch: Batch) -> Term:
        log_probs = label_log_probs(output.head.logits(), batch["targets"])
        return weighted_sum(of(log_probs, n=n), batch["weights"])

    return term


def sequence_coverage(n: ArrayLike, of: Callable[..., jax.Array] = dco) -> TermOf:
    """`losses.coverage.dco` of whole answers, a mean over sequences; `of` as in `label_coverage`.

    log p of an answer is a sum over its weighed tokens, streamed over the vocabulary. For models
    without dropout: p is that of the forward pass that is trained.
    """

    def term(output: ModelOutput, batch: Batch) -> Term:
        return weighted_sum(of(_log_probs(output, batch), n=n), sequence_weights(batch))

    return term


def estimated_coverage(
    n: ArrayLike, *, threshold: float = 0.0, column: str = "success_rates"
) -> TermOf:
    """`losses.coverage.estimated_dco` of chains of thought, a mean over those that are learnt.

    batch[column] f32 [B]: the estimated probability that a sampled chain ends in the right answer,
    to be renewed as the model learns (between rounds, say). Sequences whose factor is below the
    threshold are not counted in the mean; the rule is UNVERIFIED.
    """

    def term(output: ModelOutput, batch: Batch) -> Term:
        if column not in batch:
            raise ValueError(f"batch: got {', '.join(sorted(batch))}, takes {column!r} besides")
        rates = batch[column]
        ones = sequence_weights(batch)
        learnt = estimated_dco(-ones, rates, n=n, threshold=threshold) > 0
        losses = estimated_dco(_log_probs(output, batch), rates, n=n, threshold=threshold)
        return weighted_sum(losses, ones * learnt)

    return term


def _log_probs(output: ModelOutput, batch: Batch) -> jax.Array:
    return sequence_log_probs(token_log_probs(output.head, batch["targets"]), batch["weights"])
