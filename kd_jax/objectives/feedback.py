"""Language modelling on scored text (`losses.feedback`), streamed over the vocabulary.

batch["scores"] f32 [B, T] stands beside the targets: how bad the segment of each is. What needs no
more than the model is a term of `supervise`: supervise(model, {"ul": token_unlikelihood(...)}).
Likelihood of all text, of filtered text and of tagged text is `terms.next_token_nll`; filtering and
tags are up to the data (`data.feedback`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.feedback import (
    convex_unlikelihood,
    reward_weights,
    rwr,
    unlikelihood,
    value_error,
)
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.supervise import TermOf
from kd_jax.types import (
    Batch,
    Context,
    Model,
    Objective,
    Output,
    Policy,
    keep,
    weighted_sum,
)


def token_unlikelihood(*, threshold: float, alpha: float = 1.0) -> TermOf:
    """`losses.feedback.unlikelihood`, a mean over tokens by batch["weights"] [B, T]."""
    return _of_tokens(lambda lp, s: unlikelihood(lp, s, threshold=threshold, alpha=alpha))


def token_convex_unlikelihood(*, alpha: float = 1.0) -> TermOf:
    """`losses.feedback.convex_unlikelihood`, a mean over tokens."""
    return _of_tokens(lambda lp, s: convex_unlikelihood(lp, s, alpha=alpha))


def token_rwr(*, beta: float, clip: float = 1000.0) -> TermOf:
    """`losses.feedback.rwr`, a mean over tokens; the weights are not normalised."""
    return _of_tokens(lambda lp, s: rwr(lp, s, beta=beta, clip=clip))


def advantage_weighted(
    model: Model,
    *,
    beta: float,
    alpha: float = 0.5,
    clip: float = 1000.0,
    place: str = "final",
    policy: Policy = own_weights,
) -> Objective:
    """`losses.feedback.awr`, a mean over tokens, in two terms: "policy" and "value".

    aux: {"kernel": f32 [D], "bias": f32 []}, zeros at the start: the value of a position is a
    linear function of the stream [B, T, D] that the model taps at `place`, into which the gradient
    of the squared error goes too. Metrics, means over tokens: "weight", and "expected", the value.
    """

    def tapped(params, frozen, batch, **settings):
        return model.apply(policy(params, frozen), batch, taps=(place,), **settings)

    def init(key, params, frozen, batch):
        own = {"model": params, "aux": {}}
        width = jax.eval_shape(tapped, own, frozen, batch).taps[place].shape[-1]
        return {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}, {}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = tapped(params, frozen, batch, key=ctx.key, train=ctx.train)
        head, stream = params["aux"], output.taps[place].astype(jnp.float32)
        values = stream @ head["kernel"] + head["bias"]
        scores, weights = _scores(batch), batch["weights"]
        advantage = reward_weights(scores, values, beta=beta, clip=clip)
        nll = weighted_sum_over_vocabulary(
            _weighed_nll, output.head, weights, (batch["targets"], advantage)
        )
        error = weighted_sum(value_error(scores, values), weights)
        return Output(
            {
                "policy": nll._replace(scale=alpha),
                "value": error._replace(scale=1 - alpha),
            },
            {
                "weight": weighted_sum(advantage, weights),
                "expected": weighted_sum(values, weights),
            },
        )

    return Objective(init, loss, keep)


def _of_tokens(loss_of: Callable[[jax.Array, jax.Array], jax.Array]) -> TermOf:
    """A loss of the targets' log-probabilities and scores, [B, T] each."""

    def row(logits, others, rows, fixed) -> jax.Array:
        targets, scores = rows
        return loss_of(label_log_probs(logits, targets), scores)

    def term(output, batch: Batch):
        rows = (batch["targets"], _scores(batch))
        return weighted_sum_over_vocabulary(row, output.head, batch["weights"], rows)

    return term


def _weighed_nll(logits, others, rows, fixed) -> jax.Array:
    targets, advantage = rows
    return -advantage * label_log_probs(logits, targets)


def _scores(batch: Batch) -> jax.Array:
    if "scores" not in batch:
        raise ValueError(f"batch: got {', '.join(sorted(batch))}, takes 'scores' besides")
    return batch["scores"]
