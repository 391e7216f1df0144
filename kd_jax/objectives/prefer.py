"""Preference optimisation on pairs: DPO."""

import jax
import jax.numpy as jnp

from kd_jax.losses.preference import dpo as dpo_loss
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.references import Reference, model_sequence_log_probs
from kd_jax.objectives.terms import sequence_weights
from kd_jax.types import Batch, Context, Model, Objective, Output, Policy, stateless, weighted_sum


def stack_pairs(batch: Batch) -> Batch:
    """{"chosen": [P, ...], "rejected": [P, ...]} -> one batch [2P, ...]; pair i is rows 2i, 2i+1.

    Stacked on a new axis 1 and reshaped, so that a batch sharded over pairs stays where it is.
    """

    def join(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return jnp.stack([chosen, rejected], 1).reshape(-1, *chosen.shape[1:])

    return jax.tree.map(join, dict(batch["chosen"]), dict(batch["rejected"]))


def direct_preference(
    model: Model, reference: Reference, *, beta: float, policy: Policy = own_weights
) -> Objective:
    """DPO: -log sigmoid(beta (c - r)), a mean over pairs; one forward pass for both sides.

    c and r are log p - log p_ref of chosen and rejected, sums over weighed tokens. Metrics:
    "accuracy" (c > r), "margin" (beta (c - r)), "chosen" and "rejected" (c and r). Rafailov et al.
    2023 (arXiv 2305.18290), Eq. 7.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        both = stack_pairs(batch)
        log_probs = model_sequence_log_probs(
            model, policy(params, frozen), both, key=ctx.key, train=ctx.train
        ).reshape(-1, 2)
        fixed = reference(params, frozen, both).reshape(-1, 2)
        pairs = sequence_weights(both).reshape(-1, 2).prod(1)
        chosen, rejected = jnp.moveaxis(log_probs - fixed, 1, 0)
        losses = dpo_loss(log_probs[:, 0], log_probs[:, 1], fixed[:, 0], fixed[:, 1], beta=beta)
        return Output(
            {"dpo": weighted_sum(losses, pairs)},
            {
                "accuracy": weighted_sum(chosen > rejected, pairs),
                "margin": weighted_sum(beta * (chosen - rejected), pairs),
                "chosen": weighted_sum(chosen, pairs),
                "rejected": weighted_sum(rejected, pairs),
            },
        )

    return stateless(loss)
