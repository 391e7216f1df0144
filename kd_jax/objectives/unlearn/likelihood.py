"""Unlearning by lowering likelihood: gradient ascent, plain or weighted; gradient difference."""

from collections.abc import Callable

import jax

from kd_jax.losses import unlearning
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.objectives.combinators import add, on, own_weights
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless


def gradient_ascent(model: Model, *, policy: Policy = own_weights) -> Objective:
    """mean over weighed tokens of log p(target): minimised, so unbounded below (card B1)."""
    return _ascent(model, unlearning.gradient_ascent, policy)


def weighted_gradient_ascent(
    model: Model, *, beta: float, policy: Policy = own_weights
) -> Objective:
    """WGA: mean over weighed tokens of sg(p**beta) log p, p that of the target.

    A token's weight falls with its probability, so the loss is bounded below by -1 / (e beta).
    Wang et al. 2025 (arXiv 2502.19301); used with beta = 1 and a retain term of weight 1.
    """
    return _ascent(model, lambda lp: unlearning.weighted_gradient_ascent(lp, beta=beta), policy)


def satimp(
    model: Model, *, beta_1: float, beta_2: float, policy: Policy = own_weights
) -> Objective:
    """SatImp: mean over weighed tokens of sg(p**beta_1 (1 - p)**beta_2) log p.

    Yang et al. 2025 (arXiv 2505.11953); used with 5 and 1, weight 0.1, and a retain term of
    weight 1.
    """
    return _ascent(model, lambda lp: unlearning.satimp(lp, beta_1=beta_1, beta_2=beta_2), policy)


def gradient_difference(model: Model, *, policy: Policy = own_weights) -> Objective:
    """Ascent on batch["forget"] plus next-token NLL on batch["retain"], weights 1 and 1 (B2)."""
    return add(
        {
            "forget": on("forget", gradient_ascent(model, policy=policy)),
            "retain": on("retain", supervise(model, {"nll": next_token_nll}, policy=policy)),
        }
    )


def _ascent(model: Model, loss_of: Callable[[jax.Array], jax.Array], policy: Policy) -> Objective:
    """The mean over weighed tokens of a loss of the targets' log-probabilities [B, T]."""

    def row(logits, others, targets, fixed) -> jax.Array:
        return loss_of(label_log_probs(logits, targets))

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        term = weighted_sum_over_vocabulary(row, output.head, batch["weights"], batch["targets"])
        return Output({"ascent": term})

    return stateless(loss)
