"""Unlearning: gradient ascent, gradient difference, KL-retain and NPO.

Each objective works on one text batch; `on("forget", ...)` and `on("retain", ...)` of the
combinators place them:

    add({"forget": on("forget", negative_preference(model, reference, beta=0.1)),
         "retain": on("retain", supervise(model, {"nll": next_token_nll}))})        # NPO+RT
"""

from kd_jax.losses.streaming import token_forward_kl, token_log_probs
from kd_jax.losses.unlearning import gradient_ascent as ascent_loss
from kd_jax.losses.unlearning import npo, npo_weight
from kd_jax.objectives.combinators import add, frozen_weights, on, own_weights
from kd_jax.objectives.references import Reference, model_sequence_log_probs
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll, sequence_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, weighted_sum


def _no_state(key, params, frozen, batch):
    return {}, {}


def gradient_ascent(model: Model, *, policy: Policy = own_weights) -> Objective:
    """mean over weighed tokens of log p(target): minimised, so unbounded below (card B1)."""

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        losses = ascent_loss(token_log_probs(output.head, batch["targets"]))
        return Output({"ascent": weighted_sum(losses, batch["weights"])})

    return Objective(_no_state, loss)


def gradient_difference(model: Model, *, policy: Policy = own_weights) -> Objective:
    """Ascent on batch["forget"] plus next-token NLL on batch["retain"], weights 1 and 1 (B2)."""
    return add(
        {
            "forget": on("forget", gradient_ascent(model, policy=policy)),
            "retain": on("retain", supervise(model, {"nll": next_token_nll}, policy=policy)),
        }
    )


def kl_retain(
    model: Model, *, policy: Policy = own_weights, reference: Policy = frozen_weights("reference")
) -> Objective:
    """mean over weighed tokens of KL(reference || current), forward KL over the vocabulary (B3).

    The authors' code averages over prompt and padding too, which makes the scale of the term
    depend on padding; here only tokens with weight count.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        current = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        target = model.apply(reference(params, frozen), batch)
        kl = token_forward_kl(current.head, target.head)  # stops the target
        return Output({"kl": weighted_sum(kl, batch["weights"])})

    return Objective(_no_state, loss)


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

    return Objective(_no_state, loss)
