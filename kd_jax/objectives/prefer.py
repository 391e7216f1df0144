"""Preference optimisation on pairs of completions."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.preference.pairs import PairLoss, Pairs, log_ratios
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import over_vocabulary, token_log_probs
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.references import Online, Reference
from kd_jax.objectives.terms import answer_lengths, sequence_weights
from kd_jax.types import (
    Batch,
    Context,
    Head,
    Model,
    Objective,
    Output,
    Policy,
    Term,
    stateless,
    weighted_sum,
)

# A number of every position: (logits f32 [B, C, V], the reference's or None, targets) -> [B, C].
# Functions of a module, not made on the way: they are the keys under which values are found.
Statistic = Callable[[jax.Array, jax.Array | None, jax.Array], jax.Array]


class Seen(NamedTuple):
    """What one forward pass of both sides tells of P pairs; rows 2i and 2i+1 are pair i's.

    batch: as `stack_pairs` made it, [2P, ...]. weights: f32 [P], 0 for padding pairs.
    log_probs: of every target, f32 [2P, T]. tokens: the statistics that were asked for, [2P, T].
    """

    batch: Batch
    pairs: Pairs
    weights: jax.Array
    log_probs: jax.Array
    tokens: Mapping[Statistic, jax.Array]


class PairTerm(NamedTuple):
    """A term that shares the forward pass: a regulariser, a loss of tokens, something measured.

    statistics: what `term` reads of Seen.tokens. whole_batch: it couples the pairs of a batch.
    """

    term: Callable[[Seen], Term]
    statistics: tuple[Statistic, ...] = ()
    whole_batch: bool = False


def predictions(reference: jax.Array | None) -> jax.Array:
    """The reference's logits, for statistics that read them; ValueError where there are none."""
    if reference is None:
        raise ValueError("reference: got no whole predictions, takes references.online(model)")
    return reference


def reference_log_prob(
    logits: jax.Array, reference: jax.Array | None, targets: jax.Array
) -> jax.Array:
    """log p_ref of every target, a Statistic."""
    return label_log_probs(predictions(reference), targets)


def stack_pairs(batch: Batch) -> Batch:
    """{"chosen": [P, ...], "rejected": [P, ...]} -> one batch [2P, ...]; pair i is rows 2i, 2i+1.

    Stacked on a new axis 1 and reshaped, so that a batch sharded over pairs stays where it is.
    """

    def join(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return jnp.stack([chosen, rejected], 1).reshape(-1, *chosen.shape[1:])

    return jax.tree.map(join, dict(batch["chosen"]), dict(batch["rejected"]))


def sides(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of rows [2P, ...] stacked by `stack_pairs`, those of chosen and of rejected, [P, ...]."""
    chosen, rejected = jnp.moveaxis(rows.reshape(-1, 2, *rows.shape[1:]), 1, 0)
    return chosen, rejected


def prefer(
    model: Model,
    losses: Mapping[str, PairLoss | PairTerm],
    reference: Reference | None = None,
    *,
    metrics: Mapping[str, PairTerm] = {},
    policy: Policy = own_weights,
) -> Objective:
    """The sum of losses of pairs (`losses.preference`), each a mean over pairs, and other terms.

    prefer(model, {"dpo": functools.partial(margin.dpo, beta=0.1)}, references.online(model))

    One forward pass for both sides, and one pass over the vocabulary for all that is asked of its
    positions. A pair of which one side has no weighed token is padding.
    losses: functions of Pairs, and terms of `prefer_terms` (NLL of the chosen, KL to the reference,
        losses that read whole predictions), which have their own reductions.
    reference: of log-probabilities; None for losses that need none. Terms that read the reference's
        whole predictions take `references.online`.
    metrics: terms that are measured and have no gradient.
    Metrics besides, means over pairs: "chosen" and "rejected", log p of each; with a reference
    "chosen_ratio" and "rejected_ratio", log p / p_ref of each (times beta the implied rewards),
    "margin", their difference u, and "accuracy", 1[u > 0].
    """
    terms = {n: x if isinstance(x, PairTerm) else _mean(x) for n, x in losses.items()}
    trained, measured = (
        tuple(dict.fromkeys(s for term in some.values() for s in term.statistics))
        for some in (terms, metrics)
    )

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        both = stack_pairs(batch)
        head = model.apply(policy(params, frozen), both, key=ctx.key, train=ctx.train).head
        if (trained or measured) and isinstance(reference, Online):
            other = reference.head(params, frozen, both)
            always = (reference_log_prob,)
        else:
            other, always = None, ()
        tokens = _statistics(head, other, both["targets"], trained, always + measured)
        log_probs = tokens[_log_prob]
        sums = functools.partial(sequence_log_probs, weights=both["weights"])
        if other is not None:
            fixed = sides(sums(tokens[reference_log_prob]))
        elif reference is not None:
            fixed = sides(reference(params, frozen, both))
        else:
            fixed = (None, None)
        pairs = Pairs(*sides(sums(log_probs)), *fixed, *sides(answer_lengths(both)))
        weights = sequence_weights(both).reshape(-1, 2).prod(1)
        seen = Seen(both, pairs, weights, log_probs, tokens)
        return Output(
            {name: term.term(seen) for name, term in terms.items()},
            _measures(pairs, weights) | {name: term.term(seen) for name, term in metrics.items()},
        )

    return stateless(loss, whole_batch=any(term.whole_batch for term in terms.values()))


def _mean(loss: PairLoss) -> PairTerm:
    return PairTerm(lambda seen: weighted_sum(loss(seen.pairs), seen.weights))


def _measures(pairs: Pairs, weights: jax.Array) -> dict[str, Term]:
    found = {"chosen": pairs.policy_chosen, "rejected": pairs.policy_rejected}
    if pairs.reference_chosen is not None:
        c, r = log_ratios(pairs)
        ratios = {"chosen_ratio": c, "rejected_ratio": r}
        found |= ratios | {"margin": c - r, "accuracy": c > r}
    return {name: weighted_sum(x, weights) for name, x in found.items()}


def _statistics(
    head: Head,
    reference: Head | None,
    targets: jax.Array,
    trained: tuple[Statistic, ...],
    measured: tuple[Statistic, ...],
) -> dict[Statistic, jax.Array]:
    """Of every position, f32 [2P, T] each, in one pass over the head, and `_log_prob` besides.

    Those that are measured alone have no gradient.
    """
    if not trained and not measured:
        return {_log_prob: token_log_probs(head, targets)}
    trained = (_log_prob, *trained)
    measured = tuple(s for s in dict.fromkeys(measured) if s not in trained)
    row = functools.partial(_row, trained, measured)
    found = over_vocabulary(row, head, targets, others=() if reference is None else (reference,))
    return dict(zip(trained + measured, found, strict=True))


def _row(trained, measured, logits, others, targets, fixed) -> tuple[jax.Array, ...]:
    other = others[0] if others else None
    stopped = jax.lax.stop_gradient(logits)
    return tuple(f(logits, other, targets) for f in trained) + tuple(
        f(stopped, other, targets) for f in measured
    )


def _log_prob(logits: jax.Array, reference: jax.Array | None, targets: jax.Array) -> jax.Array:
    return label_log_probs(logits, targets)
