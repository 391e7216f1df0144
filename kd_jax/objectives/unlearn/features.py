"""Unlearning in the hidden states: RMU, representation misdirection.

add({"forget": on("forget", misdirection(model, "block_7", coefficient=2.0)),
     "retain": on("retain", feature_retention(model, "block_7"))})

Li et al. 2024 (WMDP), arXiv 2403.03218, in the form of open-unlearning: both terms are means over
sequences of means over tokens, weights 1 and 1. The authors scale the retain term by 1200 and train
the MLPs' down projections of three layers only (`make_train_step(trains=...)`). Both take the
states that predict a weighed token; released code takes those at the answer's own tokens, one
later. No gradient reaches layers above the place.
"""

import jax
import jax.numpy as jnp

from kd_jax.losses.features import sequence_mse
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.terms import sequence_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless, weighted_sum


def misdirection(
    model: Model, place: str, *, coefficient: float, policy: Policy = own_weights
) -> Objective:
    """mean_b mean_t mean_d (h - u)^2 of the states h at `place`, u a fixed random direction.

    u = coefficient * r / ||r||, r uniform in [0, 1)^D: drawn once, from init's key, and kept in
    carry as {"control": f32 [D]}. coefficient: 6.5 in the paper for Zephyr-7B; 2 and 20 in released
    configurations. Too large a one costs the model everything. Metric "norm": the mean of ||h||
    where it is weighed, to choose the coefficient by.
    """

    def states(params, frozen, batch, **settings) -> jax.Array:
        output = model.apply(policy(params, frozen), batch, taps=(place,), **settings)
        return output.taps[place]

    def init(key, params, frozen, batch):
        own = {"model": params, "aux": {}}
        width = jax.eval_shape(states, own, frozen, batch).shape[-1]
        direction = jax.random.uniform(key, (width,))
        return {}, {"control": coefficient * direction / jnp.linalg.norm(direction)}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        h = states(params, frozen, batch, key=ctx.key, train=ctx.train)
        control = jax.lax.stop_gradient(jnp.broadcast_to(carry["control"], h.shape))
        losses = sequence_mse(h, control, batch["weights"])
        norms = jnp.linalg.norm(jax.lax.stop_gradient(h).astype(jnp.float32), axis=-1)
        return Output(
            {"misdirection": weighted_sum(losses, sequence_weights(batch))},
            {"norm": weighted_sum(norms, batch["weights"])},
        )

    return Objective(init, loss)


def feature_retention(
    model: Model,
    place: str,
    *,
    policy: Policy = own_weights,
    reference: Policy = frozen_weights("reference"),
) -> Objective:
    """mean_b mean_t mean_d (h - h_ref)^2 of the states at `place`; no gradient to the reference."""

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        current = model.apply(
            policy(params, frozen), batch, key=ctx.key, train=ctx.train, taps=(place,)
        )
        target = model.apply(reference(params, frozen), batch, taps=(place,))
        fixed = jax.lax.stop_gradient(target.taps[place])
        losses = sequence_mse(current.taps[place], fixed, batch["weights"])
        return Output({"retention": weighted_sum(losses, sequence_weights(batch))})

    return stateless(loss)
