"""Preference optimisation on single completions that are marked desirable or not."""

import jax
import jax.numpy as jnp

from kd_jax.losses.preference import unpaired
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.references import Reference, model_sequence_log_probs
from kd_jax.objectives.terms import sequence_weights
from kd_jax.types import (
    Batch,
    Context,
    Model,
    Objective,
    Output,
    Params,
    Policy,
    Term,
    weighted_sum,
)


def kto(
    model: Model,
    reference: Reference,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    mismatched: str = "mismatched",
    policy: Policy = own_weights,
) -> Objective:
    """KTO (`losses.preference.unpaired.kto`), a mean over all completions; the term "kto".

    The batch is {"desirable": rows, "undesirable": rows}, of as many rows each or not, or one text
    batch whose entry "desirable" [B] marks its rows; and batch[mismatched], rows of prompts with
    completions of other prompts (`data.pairs.mismatched`). Their mean log p / p_ref over the whole
    batch, clamped at 0 after it is taken, is the point that completions are compared with. It costs
    one more forward pass of policy and reference, without gradient.
    Metrics: "baseline", that mean before it is clamped, and those of both kinds of rows,
    "desirable_ratio" and "undesirable_ratio", means of log p / p_ref.
    """

    def stats(params, carry, frozen, batch, ctx: Context) -> dict[str, Term]:
        rows = batch[mismatched]
        ratios = _log_ratios(model, policy, reference, params, frozen, rows, ctx)
        return {"baseline": weighted_sum(ratios, sequence_weights(rows))}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        rows = marked({name: x for name, x in batch.items() if name != mismatched})
        ratios = _log_ratios(model, policy, reference, params, frozen, rows, ctx)
        values = unpaired.kto(
            ratios,
            rows["desirable"],
            ctx.stats["baseline"],
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        baseline = weighted_sum(ctx.stats["baseline"])
        return Output(
            {"kto": weighted_sum(values, sequence_weights(rows))},
            {"baseline": baseline} | _by_kind(ratios, rows),
        )

    return Objective(_nothing, loss, stats=stats)


def bco(
    model: Model, reference: Reference, *, beta: float, policy: Policy = own_weights
) -> Objective:
    """BCO (`losses.preference.unpaired.bco`), a mean over all completions; the term "bco".

    Batches as for `kto`, without mismatched rows. The shift is the mean of the rewards
    beta log p / p_ref of all completions that the run has seen, the current batch's included; the
    carry holds their sum and number. One more forward pass without gradient, for the current
    batch's. Metrics: "shift", "reward", the current batch's mean, and "desirable_ratio" and
    "undesirable_ratio", means of log p / p_ref.
    """

    def init(key, params, frozen, batch):
        rows = marked(batch)["desirable"].size
        return {}, {"total": jnp.zeros(()), "count": jnp.zeros(()), "rows": jnp.float32(rows)}

    def stats(params, carry, frozen, batch, ctx: Context) -> dict[str, Term]:
        rows = marked(batch)
        ratios = _log_ratios(model, policy, reference, params, frozen, rows, ctx)
        now = weighted_sum(beta * ratios, sequence_weights(rows))
        # What the carry holds is added once: a microbatch adds its part of it.
        part = rows["desirable"].size / carry["rows"]
        return {
            "shift": Term(now.total + part * carry["total"], now.weight + part * carry["count"])
        }

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        rows = marked(batch)
        ratios = _log_ratios(model, policy, reference, params, frozen, rows, ctx)
        weights, shift = sequence_weights(rows), ctx.stats["shift"]
        values = unpaired.bco(ratios, rows["desirable"], shift, beta=beta)
        measured = {"shift": weighted_sum(shift), "reward": weighted_sum(beta * ratios, weights)}
        return Output({"bco": weighted_sum(values, weights)}, measured | _by_kind(ratios, rows))

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        now = output.metrics["reward"]
        return carry | {
            "total": carry["total"] + now.total,
            "count": carry["count"] + now.weight,
        }

    return Objective(init, loss, update, stats)


def marked(batch: Batch) -> Batch:
    """One text batch with an entry "desirable" [B], of such a one or of two parts.

    {"desirable": rows, "undesirable": rows}: the rows of the first and then those of the second, of
    the same length T; ValueError where there is neither.
    """
    if "inputs" in batch and "desirable" in batch:
        return batch
    if set(batch) != {"desirable", "undesirable"}:
        raise ValueError(
            f"batch: got {', '.join(sorted(batch))}, takes the parts desirable and undesirable, or "
            "rows with an entry 'desirable'"
        )
    parts = [
        dict(batch[name]) | {"desirable": jnp.full(batch[name]["targets"].shape[0], mark)}
        for name, mark in (("desirable", True), ("undesirable", False))
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _log_ratios(
    model: Model,
    policy: Policy,
    reference: Reference,
    params: Params,
    frozen,
    rows: Batch,
    ctx: Context,
) -> jax.Array:
    found = model_sequence_log_probs(
        model, policy(params, frozen), rows, key=ctx.key, train=ctx.train
    )
    return found - reference(params, frozen, rows)


def _by_kind(ratios: jax.Array, rows: Batch) -> dict[str, Term]:
    kinds = {"desirable_ratio": rows["desirable"] != 0, "undesirable_ratio": rows["desirable"] == 0}
    return {
        name: weighted_sum(ratios, sequence_weights(rows) * kind) for name, kind in kinds.items()
    }


def _nothing(key, params, frozen, batch):
    return {}, {}
