"""Preference losses that look at c and r, not at their difference alone.

c, r = log policy / reference of chosen and rejected (`pairs.log_ratios`), of sums over tokens. What
lifts both moves these losses: they say where each is to go. beta > 0 throughout, 0.1 where nothing
else is said. Each is -> f32 [P], one value a pair.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses.preference.links import logistic
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import Pairs, log_ratios, scored


def bco_pair(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta c) - log sigmoid(-beta r): two classifications; 2 log 2 at the reference.

    `unpaired.bco` without its shift, on both sides of a pair. Source: Jung et al. 2024, arXiv
    2404.04656, as coded in trl.
    """
    c, r = _rewards(pairs, beta)
    return logistic(c) + logistic(-r)


def nca(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta c) - log sigmoid(-beta c) / 2 - log sigmoid(-beta r) / 2.

    Noise contrast: both completions stand for noise too, which keeps c near 0.
    Source: Chen et al. 2024, arXiv 2402.05369, for two completions with one reward above the other.
    """
    c, r = _rewards(pairs, beta)
    return logistic(c) + 0.5 * logistic(-c) + 0.5 * logistic(-r)


def apo_zero(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """1 - sigmoid(beta c) + sigmoid(beta r), in (0, 2): chosen up and rejected down.

    For chosen completions better than the model's own.
    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266.
    """
    c, r = _rewards(pairs, beta)
    return jax.nn.sigmoid(-c) + jax.nn.sigmoid(r)


def apo_down(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """sigmoid(beta c) + 1 - sigmoid(beta (c - r)), in (0, 2): both down, rejected more.

    For chosen completions worse than the model's own. Near the reference the two gradients on the
    chosen cancel. Source: arXiv 2408.06266.
    """
    c, r = _rewards(pairs, beta)
    return jax.nn.sigmoid(c) + jax.nn.sigmoid(r - c)


def dpop(pairs: Pairs, *, beta: ArrayLike, penalty: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta (u - penalty max(0, -c))): DPO that pays for a chosen below its reference.

    penalty at least 0: 0 is `dpo`. beta 0.3 and penalty 50 (UNVERIFIED).
    Source: Pal et al. 2024 (DPO-Positive), arXiv 2402.13228; the formula from memory.
    """
    _checks.positive("beta", beta)
    _checks.not_negative("penalty", penalty)
    c, r = log_ratios(pairs)
    return logistic((c - r - jax.nn.relu(-c) * penalty) * beta)


def f_dpo(
    pairs: Pairs, score: Callable[[jax.Array], jax.Array], *, beta: ArrayLike
) -> Float[Array, " P"]:
    """-log sigmoid(beta (score(c) - score(r))): DPO under another divergence from the reference.

    score(log ratio) = f'(ratio) up to a constant, f the divergence's generator; elementwise:
    reverse KL: the identity (`dpo`); alpha divergence: `power(alpha - 1)`, 0.5; forward KL:
    `power(-1)`; Jensen-Shannon: `jax.nn.log_sigmoid`.
    Source: Wang et al. 2023, arXiv 2309.16240, table 1 (number UNVERIFIED).
    """
    return dpo(scored(pairs, score), beta=beta)


def power(exponent: float) -> Callable[[jax.Array], jax.Array]:
    """x -> (e^(exponent x) - 1) / exponent, x where the exponent is 0: Box and Cox's transformation
    of e^x.

    Elementwise in float32. exponent x above 80 counts as 80: beyond, the value stays finite and has
    no gradient. The -1 moves no margin, and keeps the digits of small exponents.
    """
    if exponent == 0:
        return lambda x: x
    return lambda x: jnp.expm1(jnp.minimum(exponent * x, 80.0)) / exponent


def _rewards(pairs: Pairs, beta: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """(beta c, beta r)."""
    _checks.positive("beta", beta)
    c, r = log_ratios(pairs)
    return c * beta, r * beta
