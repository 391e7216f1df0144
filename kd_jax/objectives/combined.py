"""Texts scored under models that exist only as a combination of other models' logits."""

from collections.abc import Callable, Mapping, Sequence

import jax

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import over_vocabulary
from kd_jax.objectives.terms import answer_lengths
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless

Combine = Callable[..., jax.Array]  # of each model's logits, f32 [..., V] -> f32 [..., V]


def combined_scores(
    models: Sequence[tuple[Model, Policy]],
    combine: Mapping[str, Combine],
    *,
    chunk: int | None = None,
) -> Objective:
    """Rows {name: f32[B]} of a text batch and "tokens" f32[B], for evaluation steps.

    models: each with where its weights are, such as `frozen_weights("big")`. combine: by name,
    functions of the models' logits in their order, which close over no traced value. The row of a
    name is the sum over weighed tokens of log softmax(combine(...))_target, "tokens" is how many
    there are: the cross-entropy of a set is -sum(row) / sum(tokens).

    One forward pass of each model, whatever number of combinations; of their logits, a piece along
    T is in memory at once, for each model and what a combination needs besides. chunk: positions of
    a piece, as in `losses.streaming.over_vocabulary`. Never trained on: no gradient.
    """
    if not models or not combine or "tokens" in combine:
        raise ValueError(
            f"models, combine: got {len(models)} and {', '.join(combine) or 'none'}, take at least "
            "one of each, and no combination named tokens"
        )

    def row(logits, others, targets, fixed) -> dict[str, jax.Array]:
        return {
            name: label_log_probs(one(logits, *others), targets) for name, one in combine.items()
        }

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        heads = [model.apply(policy(params, frozen), batch).head for model, policy in models]
        head, *others = jax.lax.stop_gradient(heads)
        found = over_vocabulary(row, head, batch["targets"], others=others, chunk=chunk)
        rows = {name: sequence_log_probs(x, batch["weights"]) for name, x in found.items()}
        return Output({}, {}, rows | {"tokens": answer_lengths(batch)})

    return stateless(loss)
