"""Gradient entanglement: how the log-probabilities of chosen and rejected move each other.

With g_w and g_l the gradients of a pair's two sequence log-probabilities (sums over tokens), a
gradient step of size eta on a loss of a pair changes them, to first order, by

    of chosen:    eta (d_w |g_w|^2 - d_l <g_w, g_l>)
    of rejected:  eta (d_w <g_w, g_l> - d_l |g_l|^2)

where d_w = -dloss/dlog pi_w and d_l = dloss/dlog pi_l. Yuan et al. 2024, arXiv 2410.13828, section
3. All is of single pairs: averages over a batch meet no condition. It holds for plain gradient
steps; Adam's are others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses.preference.pairs import Pairs
from kd_jax.types import Batch

PyTree = Any
# (weights, rows) -> log pi of each row [P], a sum over its completion's tokens.
LogProbs = Callable[[PyTree, Batch], jax.Array]


class Products(NamedTuple):
    """f32 [P] each: <g_w, g_l>, |g_w|^2 and |g_l|^2 of P pairs."""

    inner: jax.Array
    chosen: jax.Array
    rejected: jax.Array

    @property
    def cosine(self) -> jax.Array:
        """<g_w, g_l> / (|g_w| |g_l|); 0 where a gradient is 0."""
        size = jnp.sqrt(jnp.maximum(self.chosen * self.rejected, 0.0))
        return jnp.where(size == 0, 0.0, self.inner / jnp.where(size == 0, 1.0, size))


def products(chosen: PyTree, rejected: PyTree) -> Products:
    """Of gradients, trees of [P, ...], pair by pair."""
    return Products(_dot(chosen, rejected), _dot(chosen, chosen), _dot(rejected, rejected))


def exact(log_probs: LogProbs, weights: PyTree, chosen: Batch, rejected: Batch) -> Products:
    """From each pair's own gradients, vmapped: memory of 2 P gradients, for small models.

    chosen, rejected: rows [P, ...] that `log_probs` takes; it is differentiated with respect to all
    of `weights`.
    """

    def gradient(rows: Batch) -> PyTree:
        one = jax.tree.map(lambda x: x[None], rows)
        return jax.grad(lambda w: log_probs(w, one)[0])(weights)

    return products(jax.vmap(gradient)(chosen), jax.vmap(gradient)(rejected))


class Estimate(NamedTuple):
    """mean: unbiased; error: the standard error of it, over probes."""

    mean: Products
    error: Products


def probed(
    log_probs: LogProbs,
    weights: PyTree,
    chosen: Batch,
    rejected: Batch,
    *,
    key: jax.Array,
    probes: int,
) -> Estimate:
    """From directional derivatives in random directions: no gradient is made.

    For v ~ N(0, I), E <g_w, v> <g_l, v> = <g_w, g_l>, and with both the same the squared norms. One
    forward-mode pass gives all rows' derivatives in one direction, and takes the memory of one more
    copy of weights and activations. With m probes the standard deviation of a squared norm n is
    sqrt(2 / m) n, that of the inner product sqrt((n_w n_l + inner^2) / m).

    log_probs: must allow forward mode, which custom gradients do not:
        `losses.streaming.token_log_probs` of a dense head does, of a factored one
        `losses.streaming.forward_token_log_probs`. probes: at least 2.
    """
    if probes < 2:
        raise ValueError(f"probes: got {probes}, takes at least 2")

    def both(w: PyTree) -> tuple[jax.Array, jax.Array]:
        return log_probs(w, chosen), log_probs(w, rejected)

    def one(key: jax.Array) -> Products:
        leaves, tree = jax.tree.flatten(weights)
        keys = jax.random.split(key, len(leaves))
        direction = tree.unflatten(
            [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        )
        _, (of_chosen, of_rejected) = jax.jvp(both, (weights,), (direction,))
        return Products(of_chosen * of_rejected, of_chosen**2, of_rejected**2)

    found = jax.lax.map(one, jax.random.split(key, probes))
    mean = jax.tree.map(lambda x: x.mean(0), found)
    error = jax.tree.map(lambda x: x.std(0, ddof=1) / jnp.sqrt(probes), found)
    return Estimate(mean, error)


def coefficients(loss: Callable[[Pairs], jax.Array], pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """(d_w, d_l) of each pair, f32 [P]: -dloss/dlog pi_w and dloss/dlog pi_l.

    loss: one value a pair that reads no other pair, as those of `losses.preference`; what an NLL of
    the chosen adds belongs into it.
    """
    gradient = jax.grad(lambda pairs: loss(pairs).sum())(pairs)
    return -gradient.policy_chosen, gradient.policy_rejected


class Changes(NamedTuple):
    """f32 [P] each: of log pi of the chosen and of the rejected."""

    chosen: jax.Array
    rejected: jax.Array


def predicted_changes(
    found: Products, chosen: jax.Array, rejected: jax.Array, rate: float
) -> Changes:
    """By one gradient step of size `rate` on each pair alone, to first order.

    chosen d_w, rejected d_l [P]: of `coefficients`.
    """
    return Changes(
        rate * (chosen * found.chosen - rejected * found.inner),
        rate * (chosen * found.inner - rejected * found.rejected),
    )


class Conditions(NamedTuple):
    """bool [P] each: what a small step does; both are what the preference asks for."""

    chosen_rises: jax.Array
    rejected_falls: jax.Array


def conditions(
    found: Products, chosen: jax.Array | float = 1.0, rejected: jax.Array | float = 1.0
) -> Conditions:
    """<g_w, g_l> <= (d_w / d_l) |g_w|^2, and <g_w, g_l> <= (d_l / d_w) |g_l|^2.

    chosen d_w, rejected d_l: positive, [P] or a number; equal ones, as of DPO and all losses of a
    margin of sums, drop out. The first alone: both rise; the second alone: both fall.
    """
    return Conditions(
        rejected * found.inner <= chosen * found.chosen,
        chosen * found.inner <= rejected * found.rejected,
    )


def _dot(first: PyTree, second: PyTree) -> jax.Array:
    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        product = x.astype(jnp.float32) * y.astype(jnp.float32)
        return product.reshape(len(product), -1).sum(-1)

    return jnp.stack(jax.tree.leaves(jax.tree.map(one, first, second))).sum(0)
