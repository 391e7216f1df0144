"""Sums of gradients over a pass of data: what scores of weights are made of."""

import jax
import jax.numpy as jnp
import optax

from kd_jax.accumulation import exact_grad
from kd_jax.types import Batch, Context, Frozen, Objective, PyTree, TrainState, TrainStep


def gradient_sum(objective: Objective, *, microbatches: int = 1) -> TrainStep:
    """A step that moves nothing and adds up gradients: carry["gradient"] += d loss / d model.

    After N batches carry["gradient"] is the sum over batches of the gradient of the batch's loss
    (the sum of its terms' values: a mean over the batch's tokens, say) in the model's weights, a
    float32 tree like params["model"]. Parameters stay as they are, so every batch is seen by the
    same model, and in evaluation mode (ctx.train False: no dropout). `batches` decide what a pass
    is: each row once (`kd_jax.data.order.sequential` over `pad_rows`).

    A `TrainStep`, so that a stage resumes, shards and plans it as any training; its result is
    `lambda state, frozen: state.carry["gradient"]`. carry: {"gradient", "objective": the
    objective's own}; opt_state is empty. microbatches: as of `make_train_step`.
    Metrics: "loss" and "grad_norm" of the batch.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches: got {microbatches}, takes at least 1")
    if objective.whole_batch and microbatches > 1:
        raise ValueError(
            f"microbatches: got {microbatches}, takes 1: this objective couples the examples of "
            "a batch (whole_batch=True)"
        )

    def init(key: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        key, init_key = jax.random.split(key)
        aux, carry = objective.init(init_key, params, frozen, batch)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        both = {"model": params, "aux": aux}
        carry = {"gradient": zeros, "objective": carry}
        return TrainState(jnp.zeros((), jnp.int32), both, (), carry, key)

    def apply(state: TrainState, frozen: Frozen, batch: Batch):
        loss_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        own = state._replace(carry=state.carry["objective"])
        nothing = jax.tree.map(lambda _: None, state.params)
        grad = exact_grad(
            objective, own, nothing, frozen, batch, loss_key, microbatches, train=False
        )
        grads, output = grad(state.params)
        total = jax.tree.map(
            lambda t, g: t + g.astype(jnp.float32), state.carry["gradient"], grads["model"]
        )
        ctx = Context(update_key, state.step, False)
        carry = objective.update(own.carry, state.params, frozen, output, ctx)
        metrics = {"loss": output.loss, "grad_norm": optax.tree.norm(grads["model"])}
        new = {"gradient": total, "objective": carry}
        return state._replace(step=state.step + 1, carry=new), metrics

    return TrainStep(init, apply)
