"""Unlearning as preference optimisation: NPO, and SimNPO, which needs no reference."""

import jax.numpy as jnp

from kd_jax.losses.unlearning import npo, npo_weight, simnpo, simnpo_weight
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.references import Reference, model_sequence_log_probs
from kd_jax.objectives.terms import answer_lengths, sequence_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless, weighted_sum


def negative_preference(
    model: Model, reference: Reference, *, beta: float, policy: Policy = own_weights
) -> Objective:
    """NPO: -(2 / beta) log sigmoid(-beta (log p - log p_ref)), a mean over sequences.

    Log-probabilities are sums over each sequence's weighed tokens. Metrics: "log_ratio", the mean
    of log p - log p_ref, and "weight", the mean of 2 sigmoid(beta * log ratio), which multiplies
    each sequence's gradient. Zhang et al. 2024 (arXiv 2404.05868), Eq. 3.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        log_probs = model_sequence_log_probs(
            model, policy(params, frozen), batch, key=ctx.key, train=ctx.train
        )
        fixed, rows = reference(params, frozen, batch), sequence_weights(batch)
        return Output(
            {"npo": weighted_sum(npo(log_probs, fixed, beta=beta), rows)},
            {
                "log_ratio": weighted_sum(log_probs - fixed, rows),
                "weight": weighted_sum(npo_weight(log_probs, fixed, beta=beta), rows),
            },
        )

    return stateless(loss)


def simple_negative_preference(
    model: Model, *, beta: float, delta: float = 0.0, policy: Policy = own_weights
) -> Objective:
    """SimNPO: -(2 / beta) log sigmoid(-beta (log p / n + delta)), a mean over sequences.

    log p is the sum over a sequence's n weighed tokens. Metrics: "log_prob", the mean over
    sequences of log p / n, and "weight", the mean of 2 sigmoid(beta (log p / n + delta)) / n, which
    multiplies each sequence's gradient. Fan et al. 2024 (arXiv 2410.07163); used with a retain term
    of weight 1 and itself at 0.125 (open-unlearning) or 0.1375 (authors): `scaled`.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        log_probs = model_sequence_log_probs(
            model, policy(params, frozen), batch, key=ctx.key, train=ctx.train
        )
        tokens, rows = answer_lengths(batch), sequence_weights(batch)
        losses = simnpo(log_probs, tokens, beta=beta, delta=delta)
        weight = simnpo_weight(log_probs, tokens, beta=beta, delta=delta)
        return Output(
            {"simnpo": weighted_sum(losses, rows)},
            {
                "log_prob": weighted_sum(log_probs / jnp.maximum(tokens, 1.0), rows),
                "weight": weighted_sum(weight, rows),
            },
        )

    return stateless(loss)
