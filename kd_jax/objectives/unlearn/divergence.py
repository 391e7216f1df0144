"""Unlearning with forget data alone by an f-divergence between refusals and answers: FLAT."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses.f_divergences import FDivergence
from kd_jax.losses.streaming import token_log_probs
from kd_jax.objectives.combinators import add, on, own_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, Term, weighted_sum


def flat(model: Model, *, divergence: FDivergence, policy: Policy = own_weights) -> Objective:
    """-g*(p_e) + f*(g*(p_f)): p_e on batch["refusal"], p_f on batch["forget"], as `losses.flat`.

    Each p is the mean probability of the batch's weighed tokens (probabilities, not their
    logarithms). No reference and no retain data. Terms "template/divergence" and
    "forget/divergence", metrics "template/probability" and "forget/probability". Wang et al. 2024,
    arXiv 2410.11143.
    """

    def template(p: jax.Array) -> jax.Array:
        return -divergence.g_star(p)

    return add(
        {
            "template": on("refusal", of_mean_probability(model, template, policy=policy)),
            "forget": on("forget", of_mean_probability(model, divergence.composed, policy=policy)),
        }
    )


def of_mean_probability(
    model: Model, f: Callable[[jax.Array], jax.Array], *, policy: Policy = own_weights
) -> Objective:
    """f(p), p the mean over all weighed tokens of the whole batch of the target's probability.

    A function of a mean does not add up over parts of a batch; its tangent at the mean does. So the
    mean is found first (`stats`, one more forward pass), and a token's loss is
    f(p) + f'(p) (p_t - p): its mean is f(p) and its gradient f's, exactly, on any microbatches and
    devices. First derivatives only: f'' is not in it.
    """

    def probabilities(params, frozen, batch, ctx: Context) -> jax.Array:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        return jnp.exp(token_log_probs(output.head, batch["targets"]))

    def stats(params, carry, frozen, batch, ctx: Context) -> dict[str, Term]:
        p = probabilities(params, frozen, batch, ctx)
        return {"probability": weighted_sum(p, batch["weights"])}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        mean = ctx.stats["probability"]
        value, slope = jax.value_and_grad(f)(mean)
        p = probabilities(params, frozen, batch, ctx)
        return Output(
            {"divergence": weighted_sum(value + slope * (p - mean), batch["weights"])},
            {"probability": weighted_sum(p, batch["weights"])},
        )

    return Objective(lambda key, params, frozen, batch: ({}, {}), loss, stats=stats)
