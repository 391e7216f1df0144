"""AOT: the distribution of rewards of the chosen is to lie above that of the rejected.

First-order stochastic dominance compares quantiles, so that both sides are sorted over the batch
and compared rank by rank: the losses couple all pairs, and objectives that use them are
`whole_batch`. With one pair both are DPO.
Source: Melnyk et al. 2024, arXiv 2406.05882, as coded in trl.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses.preference import links
from kd_jax.losses.preference.pairs import Pairs, log_ratios, margins

Link = Callable[[jax.Array], jax.Array]


def aot(
    pairs: Pairs, weights: Float[Array, " P"], *, beta: ArrayLike, link: Link = links.logistic
) -> Float[Array, " P"]:
    """link(beta d), d the sorted policy margins p_c - p_r less the sorted reference margins.

    weights [P]: 0 for padding pairs, which stand in no order and get 0; other values count as 1.
    -> f32 [P]; a pair has the value of the rank its policy margin has, so that a mean under the
    same weights is the loss. link: of `links`, the logistic unless said otherwise; with
    `functools.partial(links.smoothed, smoothing=...)` labels may be wrong. beta > 0, 0.1.
    """
    return _by_rank(*margins(pairs), weights, beta, link)


def aot_unpaired(
    pairs: Pairs, weights: Float[Array, " P"], *, beta: ArrayLike, link: Link = links.logistic
) -> Float[Array, " P"]:
    """link(beta d), d the sorted c less the sorted r: which completions were paired is not read.

    Arguments and order as `aot`: a pair has the value of the rank its c has.
    """
    return _by_rank(*log_ratios(pairs), weights, beta, link)


def _by_rank(
    upper: jax.Array, lower: jax.Array, weights: jax.Array, beta: ArrayLike, link: Link
) -> jax.Array:
    """link(beta (upper - the lower of the same rank)) where there is a weight, 0 elsewhere."""
    _checks.positive("beta", beta)
    _checks.same_shape(policy_chosen=upper, weights=weights)
    real = weights != 0
    # Padding goes last on both sides, so that padding meets padding.
    order, others = (jnp.argsort(jnp.where(real, x, jnp.inf)) for x in (upper, lower))
    opposite = jnp.zeros_like(lower).at[order].set(jnp.where(real, lower, 0.0)[others])
    return jnp.where(real, link((jnp.where(real, upper, 0.0) - opposite) * beta), 0.0)
