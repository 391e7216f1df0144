"""Learning from a stored teacher: its k likeliest tokens come with the batch."""

from collections.abc import Callable

import jax

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.objectives.supervise import TermOf
from kd_jax.types import Batch, ModelOutput, Term

# (logits [..., V], ids [..., K], teacher's log-probabilities [..., K] and log tail [...]) -> [...]
Rule = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
COLUMNS = ("top_k_ids", "top_k_log_probs", "top_k_log_tail")


def stored_top_k(rule: Rule, scale: float = 1.0, *, hard: float = 0.0) -> TermOf:
    """scale * rule + hard * NLL of the targets, a mean over tokens; for `supervise`.

    supervise(student, {"kd": stored_top_k(top_k_kl_with_tail)}) is the student alone: the batch has
    the columns of `launch.top_k_cache`, top_k_ids and top_k_log_probs [B, T, K] and top_k_log_tail
    [B, T]. rule: what is done with the mass that is not stored, `losses.top_k.top_k_kl_with_tail`
    as it is, or one that has no use for the tail as
    `lambda z, ids, log_p, tail: top_k_kl_renormalised(z, ids, log_p)`.
    Streamed over the vocabulary, both losses on the same logits.

    Against the same rule with the teacher at hand the gradient for a position's logits is off by at
    most `data.top_k_records.error_bound`, a sum of absolute values. Against the whole KL, that of
    the rule with the tail is lower by tail * KL between the two models' rests, and never above it.
    """

    def row(logits, others, rows, fixed) -> jax.Array:
        targets, *known = rows
        value = scale * rule(logits, *known)
        return value - hard * label_log_probs(logits, targets) if hard else value

    def term(output: ModelOutput, batch: Batch) -> Term:
        missing = [name for name in COLUMNS if name not in batch]
        if missing:
            raise ValueError(
                f"batch: got {', '.join(sorted(batch))}, takes {', '.join(missing)} besides"
            )
        rows = (batch["targets"], *(batch[name] for name in COLUMNS))
        return weighted_sum_over_vocabulary(row, output.head, batch["weights"], rows)

    return term
