"""Unlearning towards another next-token distribution: UNDIAL, CE-U, maximum entropy, flat logits.

Each works on one text batch and averages over its weighed tokens.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses import targets
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import Batch, Context, Model, Objective, Output, Policy, stateless


def undial(
    model: Model,
    *,
    beta: float,
    policy: Policy = own_weights,
    reference: Policy = frozen_weights("reference"),
) -> Objective:
    """Cross-entropy with the frozen reference's distribution, the target's logit lowered by beta.

    A mean over weighed tokens; `losses.targets.undial`. Dong et al. 2024, arXiv 2402.10052: beta
    10 and no retain term in the released defaults.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        current = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        target = model.apply(reference(params, frozen), batch)
        row = functools.partial(_undial_row, beta=beta)
        term = weighted_sum_over_vocabulary(
            row, current.head, batch["weights"], batch["targets"], others=(target.head,)
        )
        return Output({"undial": term})

    return stateless(loss)


def ce_u(model: Model, *, skip: int = 1, policy: Policy = own_weights) -> Objective:
    """Cross-entropy with the model's own distribution without the target token, no gradient.

    A mean over weighed tokens but the first `skip` of each row (`without_first`): what an answer
    begins with is told by the question's form. `losses.targets.ce_u`. Yang 2025, arXiv 2503.01224;
    forget data alone.
    """
    return _on_tokens(
        "ce_u", model, policy, _ce_u_row, lambda batch: without_first(batch["weights"], skip)
    )


def maximum_entropy(model: Model, *, policy: Policy = own_weights) -> Objective:
    """KL(U || p), U uniform over the vocabulary, a mean over weighed tokens.

    `losses.targets.uniform_kl`; with next-token NLL on retain rows it is ME+GD of Yuan et al. 2024,
    arXiv 2410.08109.
    """
    return _on_tokens("uniform_kl", model, policy, _uniform_row, _weights)


def logit_margin(model: Model, *, policy: Policy = own_weights) -> Objective:
    """(max_v z - mean_v z)^2, a mean over weighed tokens: the forget loss of PDU.

    `losses.targets.logit_margin`; the retain set enters as `constrained.primal_dual`'s constraint.
    Entesari et al. 2025, arXiv 2506.05314.
    """
    return _on_tokens("margin", model, policy, _margin_row, _weights)


def without_first(weights: jax.Array, count: int) -> jax.Array:
    """weights [B, T] with the first `count` non-zero ones of each row set to 0.

    A row with no more than `count` of them drops out.
    """
    if count < 0:
        raise ValueError(f"count: got {count}, takes numbers from 0")
    return jnp.where(jnp.cumsum(weights != 0, -1) > count, weights, 0.0)


def _on_tokens(
    name: str,
    model: Model,
    policy: Policy,
    row: Callable[..., jax.Array],
    weights: Callable[[Batch], jax.Array],
) -> Objective:
    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        term = weighted_sum_over_vocabulary(row, output.head, weights(batch), batch["targets"])
        return Output({name: term})

    return stateless(loss)


def _weights(batch: Batch) -> jax.Array:
    return batch["weights"]


def _undial_row(logits, others, labels, fixed, *, beta: float) -> jax.Array:
    return targets.undial(logits, others[0], labels, beta=beta)


def _ce_u_row(logits, others, labels, fixed) -> jax.Array:
    return targets.ce_u(logits, labels)


def _uniform_row(logits, others, labels, fixed) -> jax.Array:
    return targets.uniform_kl(logits)


def _margin_row(logits, others, labels, fixed) -> jax.Array:
    return targets.logit_margin(logits)
