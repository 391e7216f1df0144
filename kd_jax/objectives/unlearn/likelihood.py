"""Unlearning by lowering likelihood: gradient ascent and gradient difference."""

from kd_jax.losses.streaming import token_log_probs
from kd_jax.losses.unlearning import gradient_ascent as ascent_loss
from kd_jax.objectives.combinators import add, on, own_weights
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless, weighted_sum


def gradient_ascent(model: Model, *, policy: Policy = own_weights) -> Objective:
    """mean over weighed tokens of log p(target): minimised, so unbounded below (card B1)."""

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        losses = ascent_loss(token_log_probs(output.head, batch["targets"]))
        return Output({"ascent": weighted_sum(losses, batch["weights"])})

    return stateless(loss)


def gradient_difference(model: Model, *, policy: Policy = own_weights) -> Objective:
    """Ascent on batch["forget"] plus next-token NLL on batch["retain"], weights 1 and 1 (B2)."""
    return add(
        {
            "forget": on("forget", gradient_ascent(model, policy=policy)),
            "retain": on("retain", supervise(model, {"nll": next_token_nll}, policy=policy)),
        }
    )
