"""From a model's output and a batch to Terms: the pieces that `supervise` and `distil` take.

Each function is (output, batch) -> Term; what is weighed stands in its docstring.
"""

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import accuracy, cross_entropy, label_log_probs
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.types import Batch, ModelOutput, Term, weighted_sum


def label_cross_entropy(output: ModelOutput, batch: Batch) -> Term:
    """-log softmax(z)[target], averaged over examples by batch["weights"] [B]."""
    return weighted_sum(cross_entropy(output.head.logits(), batch["targets"]), batch["weights"])


def label_accuracy(output: ModelOutput, batch: Batch) -> Term:
    """1[argmax z = target], averaged over examples by batch["weights"] [B]."""
    return weighted_sum(accuracy(output.head.logits(), batch["targets"]), batch["weights"])


def next_token_nll(output: ModelOutput, batch: Batch) -> Term:
    """-log p(target_t), averaged over tokens by batch["weights"] [B, T]; natural logarithm.

    The mean is over all weighed tokens of the whole batch, not a mean of means per sequence.
    """
    return weighted_sum_over_vocabulary(_nll_row, output.head, batch["weights"], batch["targets"])


def sequence_weights(batch: Batch) -> jnp.ndarray:
    """f32 [B]: 1 for rows with at least one weighed token, 0 for padding rows."""
    return jnp.any(batch["weights"] != 0, axis=-1).astype(jnp.float32)


def answer_lengths(batch: Batch) -> jnp.ndarray:
    """f32 [B]: how many weighed tokens each row has; 0 for padding rows."""
    return (batch["weights"] != 0).sum(-1).astype(jnp.float32)


def _nll_row(logits, others, targets, fixed) -> jax.Array:
    return -label_log_probs(logits, targets)
