"""Keeping what is not to be forgotten: the current model held to a reference."""

import jax

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless


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
        term = weighted_sum_over_vocabulary(
            _kl_row, current.head, batch["weights"], others=(target.head,)
        )
        return Output({"kl": term})

    return stateless(loss)


def _kl_row(logits, others, rows, fixed) -> jax.Array:
    return forward_kl(logits, others[0])
