"""Means over a pass of data of what each example gives: what merges weigh models by."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.accumulation import cut
from kd_jax.types import Batch, Frozen, Params, PyTree, TrainState, TrainStep

Statistic = Callable[[Params, Frozen, Batch, jax.Array], PyTree]


def mean_over_examples(statistic: Statistic, *, microbatches: int = 1) -> TrainStep:
    """A step that moves nothing and adds up sum_x w_x s(x) and sum_x w_x; see `mean_of`.

    statistic(params, frozen, batch, keys) -> the sum over the rows of batch of w_x s(x), a tree of
    float32 arrays, with w = batch["weights"] and a key for each row, keys [B].

    A `TrainStep`, so that a stage resumes, shards and plans it as any training; its result is
    `mean_of`. Padding rows have weight 0, so the mean is exact however examples are cut into
    batches. microbatches: how many parts a batch is cut into, one after the other, which bounds the
    memory; row i has the same key in any of them. carry: {"sums", "weight"}; opt_state is empty.
    Metrics: "loss", here the sum of all entries of the mean so far (a trace), for want of a loss:
    it settles as the mean does, and what guards a training against NaN reads it.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches: got {microbatches}, takes at least 1")

    def sums_of(params: Params, frozen: Frozen, part: Batch) -> PyTree:
        weight = jnp.sum(part["rows"]["weights"].astype(jnp.float32))
        return {"sums": statistic(params, frozen, part["rows"], part["keys"]), "weight": weight}

    def with_keys(batch: Batch, key: jax.Array) -> Batch:
        return {"rows": batch, "keys": jax.random.split(key, len(batch["weights"]))}

    def init(key: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        both = {"model": params, "aux": {}}
        shapes = jax.eval_shape(sums_of, both, frozen, with_keys(batch, key))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        return TrainState(jnp.zeros((), jnp.int32), both, (), zeros, key)

    def apply(state: TrainState, frozen: Frozen, batch: Batch):
        part = with_keys(batch, jax.random.fold_in(state.key, state.step))

        def more(total: PyTree, part: Batch) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, sums_of(state.params, frozen, part)), None

        if microbatches == 1:
            carry, _ = more(state.carry, part)
        else:
            carry, _ = jax.lax.scan(more, state.carry, cut(part, microbatches))
        state = state._replace(step=state.step + 1, carry=carry)
        entries = jax.tree.map(jnp.sum, mean_of(state, frozen))
        return state, {"loss": jnp.sum(jnp.stack(jax.tree.leaves(entries)))}

    return TrainStep(init, apply)


def mean_of(state: TrainState, frozen: Frozen) -> PyTree:
    """sum_x w_x s(x) / sum_x w_x of the batches so far; 0 where there were none."""
    weight = state.carry["weight"]
    return jax.tree.map(lambda x: x / jnp.where(weight == 0, 1.0, weight), state.carry["sums"])
