"""Scoring passes: per-example rows and no terms, for evaluation steps."""

from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless


def sequence_scores(model: Model, *, policy: Policy = own_weights) -> Objective:
    """Rows "log_prob" f32[B] and "tokens" f32[B] of a text batch; never trained on.

    log_prob: the sum over weighed tokens of log p(target); tokens: how many there are. The mean
    loss of TOFU's metrics is -log_prob / tokens, NPO's reference is log_prob.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        log_probs = token_log_probs(output.head, batch["targets"])
        rows = {
            "log_prob": sequence_log_probs(log_probs, batch["weights"]),
            "tokens": (batch["weights"] != 0).sum(-1).astype("float32"),
        }
        return Output({}, {}, rows)

    return stateless(loss)
