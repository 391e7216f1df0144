"""Losses from the variational form of f-divergences, which lets two sample means stand for it.

D_f(P || Q) = sup_g E_P[g] - E_Q[f*(g)], reached by g = g*. FLAT puts the model's mean probability
of an answer where the density ratio stands, so that its loss needs two numbers only.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks


class FDivergence(NamedTuple):
    """Three functions of one number, elementwise in float32.

    g_star(v): the optimal variational function. conjugate(u): f*, the convex conjugate.
    composed(v): conjugate(g_star(v)) in closed form, exact where the two apart lose digits.
    """

    g_star: Callable[[jax.Array], jax.Array]
    conjugate: Callable[[jax.Array], jax.Array]
    composed: Callable[[jax.Array], jax.Array]


# sigmoid(2 v) - 1 / 2 written as tanh(v) / 2; f* is the identity on [-1/2, 1/2].
TOTAL_VARIATION = FDivergence(lambda v: jnp.tanh(v) / 2, lambda u: u, lambda v: jnp.tanh(v) / 2)
# f* is finite below log 2, where g* stays.
JENSEN_SHANNON = FDivergence(
    lambda v: jnp.log(2.0) - jax.nn.softplus(-v),
    lambda u: -jnp.log(2.0 - jnp.exp(u)),
    lambda v: jax.nn.softplus(v) - jnp.log(2.0),
)
PEARSON = FDivergence(lambda v: v, lambda u: jnp.square(u) / 4 + u, lambda v: jnp.square(v) / 4 + v)
KL = FDivergence(lambda v: v, lambda u: jnp.exp(u - 1), lambda v: jnp.exp(v - 1))


def flat(
    p_template: Float[Array, "*batch"],
    p_forget: Float[Array, "*batch"],
    *,
    divergence: FDivergence,
) -> Float[Array, "*batch"]:
    """-g*(p_template) + f*(g*(p_forget)): down with a more likely template, up with the forgotten.

    p_template, p_forget: mean token PROBABILITIES in [0, 1] of the template answers and of those
        to forget, each over a whole batch (the function of a mean, not a mean of functions); of
        any one shape -> f32, the same shape. Nothing is stopped.
    divergence: TOTAL_VARIATION (the shipped configuration), JENSEN_SHANNON, PEARSON or KL. The
        other four of the released code are left out: with +p as argument reverse KL, Neyman and
        squared Hellinger have the wrong sign for p_template, and Jeffreys is approximated.
    Source: Wang et al. 2024 (FLAT), arXiv 2410.11143, table 1, formulas read in released code; it
    averages probabilities over padded positions too, which scales p by the share of answer tokens.
    """
    _checks.same_shape(p_template=p_template, p_forget=p_forget)
    template, forget = p_template.astype(jnp.float32), p_forget.astype(jnp.float32)
    return divergence.composed(forget) - divergence.g_star(template)
