"""Scoring passes: per-example rows and no terms, for evaluation steps."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.evaluation import displacement, membership, memorisation
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import over_vocabulary, token_log_probs, token_statistics
from kd_jax.losses.top_k import Likeliest, likeliest
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.prefer import sides, stack_pairs
from kd_jax.types import Context, Factored, Model, Objective, Output, Policy, stateless

PyTree = Any


def sequence_scores(model: Model, *, policy: Policy = own_weights) -> Objective:
    """Rows "log_prob" f32[B] and "tokens" f32[B] of a text batch; never trained on.

    log_prob: the sum over weighed tokens of log p(target); tokens: how many there are. The mean
    loss of TOFU's metrics is -log_prob / tokens, NPO's reference is log_prob.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        log_probs = token_log_probs(output.head, batch["targets"])
        return Output({}, {}, answer_sums(log_probs, batch["weights"]))

    return stateless(loss)


def answer_statistics(model: Model, *, policy: Policy = own_weights, k: float = 0.4) -> Objective:
    """The rows of `sequence_scores` and what else one forward pass tells of answers, f32[B] each.

    "log_prob" and "tokens" count the end-of-sequence token; "memorisation" (exact)
    and "extraction" (its strength; `evaluation.memorisation`), "min_k" and "min_k_pp"
    (`evaluation.membership`, with this k) leave out the last weighed token, as open-unlearning
    does. A row of padding has 0, and NaN for memorisation. Never trained on.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        log_probs, mean, variance, correct = token_statistics(output.head, batch["targets"])
        inner = memorisation.without_last(batch["weights"])
        rows = answer_sums(log_probs, batch["weights"]) | {
            "memorisation": memorisation.exact_memorisation(correct, inner),
            "extraction": memorisation.extraction_strength(correct, inner),
            "min_k": membership.min_k(log_probs, inner, k=k),
            "min_k_pp": membership.min_k_pp(log_probs, mean, variance, inner, k=k),
        }
        return Output({}, {}, rows)

    return stateless(loss)


def displacement_scores(model: Model, *, policy: Policy = own_weights) -> Objective:
    """Rows of a batch of pairs, f32 [P]: how much probability each will displace if trained on.

    "ches", "ches_normalised" and "last_state_cosine" (`evaluation.displacement`), of the last
    hidden states of both sides, from one forward pass. The model is one before training, with a
    `Factored` head. Never trained on.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        both = stack_pairs(batch)
        head = model.apply(policy(params, frozen), both, key=ctx.key, train=ctx.train).head
        if not isinstance(head, Factored):
            raise ValueError("model: got a head of logits, takes one with hidden states (Factored)")
        (chosen, rejected), (first, second) = sides(head.hidden), sides(both["weights"])
        found = (chosen, first, rejected, second)
        rows = {
            "ches": displacement.ches(*found),
            "ches_normalised": displacement.ches(*found, length_normalised=True),
            "last_state_cosine": displacement.last_state_cosine(*found),
        }
        return Output({}, {}, rows)

    return stateless(loss)


def top_k_scores(
    model: Model, k: int, *, policy: Policy = own_weights, chunk: int | None = None
) -> Objective:
    """Rows "ids" i32 [B, T, k], "log_probs" f32 [B, T, k] and "log_tail" f32 [B, T].

    Of every position the model's k likeliest next tokens (`losses.top_k.likeliest`), streamed over
    positions in pieces of `chunk`, as in `losses.streaming.over_vocabulary`. Never trained on.
    """
    row = functools.partial(_likeliest_row, k)

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        head = jax.lax.stop_gradient(output.head)
        found: Likeliest = over_vocabulary(row, head, chunk=chunk)
        return Output({}, {}, found._asdict())

    return stateless(loss)


def gradient_norms(
    model: Model,
    *,
    policy: Policy = own_weights,
    order: float = 2.0,
    tensors: Callable[[PyTree], PyTree] = lambda gradient: gradient,
) -> Objective:
    """Row "gradient_norms" f32[B, tensors]: the norms of each row's own gradient.

    Of a row's loss, the mean over weighed tokens but the last (0 where there are none), the p-norm
    (p = order) of the gradient of each tensor of the policy's weights, in the order of
    `jax.tree.leaves`. The model is in evaluation mode, unlike in open-unlearning, whose dropout is
    on. tensors: takes the gradient apart before norms are taken; `models.layout.unstack` where
    layers are stacked, so that each layer's tensor counts by itself.

    Rows are vmapped, so a device holds a gradient for each of its rows: give large models batches
    of one row a device. `evaluation.membership.gradient_norm_score` is the attack's score.
    """
    if order < 1:
        raise ValueError(f"order: got {order}, takes numbers from 1")

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        def row_loss(weights: PyTree, row: PyTree) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], row)
            head = model.apply(weights, one, key=ctx.key, train=False).head
            mask = memorisation.without_last(one["weights"])
            total = sequence_log_probs(token_log_probs(head, one["targets"]), mask)[0]
            return -total / jnp.maximum((mask != 0).sum(), 1)

        def norms(weights: PyTree, row: PyTree) -> jax.Array:
            gradient = tensors(jax.grad(row_loss)(weights, row))
            return jnp.stack([_norm(leaf, order) for leaf in jax.tree.leaves(gradient)])

        # Inside, the rows are no axis of the activations, so that their names mean nothing.
        with nn.logical_axis_rules(()):
            found = jax.vmap(norms, (None, 0))(policy(params, frozen), batch)
        return Output({}, {}, {"gradient_norms": found})

    return stateless(loss)


def answer_sums(log_probs: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """The rows of `sequence_scores`, from the log-probability of each target [B, T]."""
    return {
        "log_prob": sequence_log_probs(log_probs, weights),
        "tokens": (weights != 0).sum(-1).astype("float32"),
    }


def _likeliest_row(k: int, logits: jax.Array, others: PyTree, rows: PyTree, fixed: PyTree):
    return likeliest(logits, k=k)


def _norm(x: jax.Array, order: float) -> jax.Array:
    return jnp.linalg.norm(x.astype(jnp.float32).reshape(-1), ord=order)
