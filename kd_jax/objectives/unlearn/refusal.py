"""Unlearning by refusing: "I don't know" in place of the answers to forget.

Parts of a batch: "refusal", rows of a forget question and a refusal, in the order of "forget", the
same questions with their answers; "retain", and "retain_refusal", the same questions with refusals.
Rows that belong together are pairs: one of them without weighed tokens makes it padding.
"""

import jax

from kd_jax.losses import unlearning
from kd_jax.objectives.combinators import add, on, own_weights
from kd_jax.objectives.references import Reference, model_sequence_log_probs
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll, sequence_weights
from kd_jax.types import (
    Batch,
    Context,
    Model,
    Objective,
    Output,
    Policy,
    Term,
    stateless,
    weighted_sum,
)


def idk(model: Model, *, policy: Policy = own_weights) -> Objective:
    """TOFU's IDK: next-token NLL of batch["refusal"] and batch["retain"] as of one batch.

    One mean over the tokens of both, in which retain dominates because refusals are short. Metrics:
    "refusal" and "retain", the mean of each. Maini et al. 2024 (arXiv 2401.06121), section 3, and
    its released code.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        weights = policy(params, frozen)
        parts = {}
        for i, name in enumerate(("refusal", "retain")):
            key = jax.random.fold_in(ctx.key, i)
            output = model.apply(weights, batch[name], key=key, train=ctx.train)
            parts[name] = next_token_nll(output, batch[name])
        refusal, retain = parts["refusal"], parts["retain"]
        both = Term(refusal.total + retain.total, refusal.weight + retain.weight)
        return Output({"nll": both}, parts)

    return stateless(loss)


def idk_difference(model: Model, *, policy: Policy = own_weights) -> Objective:
    """IDK+RT: the NLL of batch["refusal"] plus that of batch["retain"], weights 1 and 1.

    Zhang et al. 2024 (arXiv 2404.05868), section 5; unlike `idk`, refusals and answers weigh the
    same however long they are.
    """
    return add({part: _nll(part, model, policy) for part in ("refusal", "retain")})


def refusal_preference(
    model: Model, reference: Reference, *, beta: float, policy: Policy = own_weights
) -> Objective:
    """DPO-unlearning: (2 / beta) DPO with batch["refusal"] chosen and batch["forget"] rejected.

    A mean over pairs (row i of both); the reference is asked for both parts. Metrics: "accuracy"
    (c > r), "refusal" and "answer", c and r, the means of log p - log p_ref. Zhang et al. 2024
    (arXiv 2404.05868); add a retain term for its +RT, and scale by beta / 2 for TOFU's version.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        refusal, answer = _pair_log_probs(
            model, policy(params, frozen), batch["refusal"], batch["forget"], ctx
        )
        fixed_refusal = reference(params, frozen, batch["refusal"])
        fixed_answer = reference(params, frozen, batch["forget"])
        losses = unlearning.refusal_preference(
            refusal, answer, fixed_refusal, fixed_answer, beta=beta
        )
        pairs = _pair_weights(batch["refusal"], batch["forget"])
        chosen, rejected = refusal - fixed_refusal, answer - fixed_answer
        return Output(
            {"dpo": weighted_sum(losses, pairs)},
            {
                "accuracy": weighted_sum(chosen > rejected, pairs),
                "refusal": weighted_sum(chosen, pairs),
                "answer": weighted_sum(rejected, pairs),
            },
        )

    return stateless(loss)


def answer_preservation(model: Model, *, beta: float, policy: Policy = own_weights) -> Objective:
    """AP: -(1 / beta) log sigmoid(beta (log p(answer) - log p(refusal))), a mean over pairs.

    Answers are batch["retain"], refusals batch["retain_refusal"]; log-probabilities are sums over
    weighed tokens. Metric: "margin", the mean of the difference. Yuan et al. 2024 (arXiv
    2410.08109).
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        answer, refusal = _pair_log_probs(
            model, policy(params, frozen), batch["retain"], batch["retain_refusal"], ctx
        )
        pairs = _pair_weights(batch["retain"], batch["retain_refusal"])
        losses = unlearning.answer_preservation(answer, refusal, beta=beta)
        return Output(
            {"preservation": weighted_sum(losses, pairs)},
            {"margin": weighted_sum(answer - refusal, pairs)},
        )

    return stateless(loss)


def idk_preservation(model: Model, *, beta: float, policy: Policy = own_weights) -> Objective:
    """IDK+AP: the NLL of batch["refusal"] plus `answer_preservation`, weights 1 and 1."""
    return add(
        {
            "refusal": _nll("refusal", model, policy),
            "retain": answer_preservation(model, beta=beta, policy=policy),
        }
    )


def _nll(part: str, model: Model, policy: Policy) -> Objective:
    return on(part, supervise(model, {"nll": next_token_nll}, policy=policy))


def _pair_log_probs(
    model: Model, weights, first: Batch, second: Batch, ctx: Context
) -> tuple[jax.Array, jax.Array]:
    """log p of each row of both [P], sums over weighed tokens. Lengths of the two may differ."""

    def of(part: Batch, i: int) -> jax.Array:
        key = jax.random.fold_in(ctx.key, i)
        return model_sequence_log_probs(model, weights, part, key=key, train=ctx.train)

    return of(first, 0), of(second, 1)


def _pair_weights(first: Batch, second: Batch) -> jax.Array:
    """f32 [P]: 1 for pairs of which both rows have weighed tokens."""
    return sequence_weights(first) * sequence_weights(second)
