"""Penalties on the weights themselves: l1-sparse unlearning.

add({"retain": on("retain", supervise(model, {"nll": next_token_nll})),
     "sparse": scheduled(l1(), decreasing(1e-3, epochs=10, steps_per_epoch=40))})
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Context, Objective, Output, Policy, stateless, weighted_sum


def l1(*, policy: Policy = own_weights) -> Objective:
    """sum_i |theta_i| over every weight, biases and norms included: the term "l1".

    A sum, not a mean: its gradient is sign(theta), 0 at 0, whatever the size of the model, and a
    coefficient that suits one model is too large for a larger. It is added at every step, so that
    the coefficient goes with the number of steps too. Reads no batch; microbatches change nothing.
    With the retain loss it is l1-sparse unlearning: Jia et al. 2023, arXiv 2304.04934
    (minimise L(theta; D_r) + gamma |theta|_1); checked against the released code.

    policy: what is penalised, what is trained by default: with LoRA the adapters' own entries.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        leaves = jax.tree.leaves(policy(params, frozen))
        norm = sum((_magnitude(x.astype(jnp.float32)).sum() for x in leaves), jnp.float32(0))
        return Output({"l1": weighted_sum(norm)})

    return stateless(loss)


def _magnitude(x: jax.Array) -> jax.Array:
    # The derivative of jnp.abs at 0 is 1, which would move what has been pruned.
    return x * jax.lax.stop_gradient(jnp.sign(x))


def decreasing(
    peak: float, *, epochs: int, steps_per_epoch: int, free_epochs: int = 0
) -> Callable[[jax.Array], jax.Array]:
    """A schedule of `scheduled`: peak (1 - e / (epochs - free_epochs)) in epoch e, then 0.

    e = step // steps_per_epoch counts from 0; the last free_epochs have no penalty. ValueError
    unless 0 <= free_epochs < epochs and 1 <= steps_per_epoch. The schedule of the released code of
    arXiv 2304.04934; a constant one is `scaled`.
    """
    if not 0 <= free_epochs < epochs:
        raise ValueError(f"free_epochs: got {free_epochs}, takes 0 to less than {epochs} epochs")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: got {steps_per_epoch}, takes at least 1")

    def schedule(step: jax.Array) -> jax.Array:
        share = (step // steps_per_epoch).astype(jnp.float32) / (epochs - free_epochs)
        return peak * jnp.maximum(1.0 - share, 0.0)

    return schedule
