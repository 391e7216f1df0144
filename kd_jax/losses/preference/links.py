"""Links: functions of a margin z, elementwise, that fall as the chosen wins; float32 in and out.

A preference loss is a link of some margin. Which margin says what is compared with what (log-ratios
to a reference, means over tokens, odds); which link says how much a margin is worth.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kd_jax.losses import _checks


def logistic(z: jax.Array) -> jax.Array:
    """-log sigmoid(z): log 2 at 0, -z far below. Bradley and Terry's likelihood."""
    return -jax.nn.log_sigmoid(z)


def smoothed(z: jax.Array, *, smoothing: ArrayLike) -> jax.Array:
    """(1 - e) logistic(z) + e logistic(-z): least at z = log((1 - e) / e).

    The cross-entropy of labels that are wrong with probability e = `smoothing`, in [0, 1].
    """
    _checks.share("smoothing", smoothing)
    return logistic(z) + z * smoothing


def robust(z: jax.Array, *, flips: ArrayLike) -> jax.Array:
    """((1 - e) logistic(z) - e logistic(-z)) / (1 - 2 e): unbounded below as z grows, e > 0.

    Its mean over labels that are flipped with probability e = `flips`, in [0, 0.5), is the logistic
    loss of the clean ones.
    """
    if isinstance(flips, int | float) and not 0 <= flips < 0.5:
        raise ValueError(f"flips: got {flips}, takes numbers in [0, 0.5)")
    return logistic(z) - z * (flips / (1 - 2 * flips))


def hinge(z: jax.Array) -> jax.Array:
    """max(0, 1 - z); no gradient from z = 1."""
    return jax.nn.relu(1.0 - z)


def squared(z: jax.Array, *, target: ArrayLike) -> jax.Array:
    """(z - target)**2: a margin above the target is pulled back."""
    return jnp.square(z - target)


def reverse_kl(z: jax.Array, *, smoothing: float) -> jax.Array:
    """KL(q || p), q = (sigmoid(z), sigmoid(-z)), p = (1 - e, e): the mode-seeking way round.

    e = `smoothing`, in (0, 1): a label that is certain has no finite value. Nats; `smoothed` is
    KL(p || q) and p's entropy.
    """
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing: got {smoothing}, takes numbers in (0, 1)")
    wins = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - math.log1p(-smoothing))
    return wins + jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - math.log(smoothing))


def log_ratio_modulated(z: jax.Array, *, temperature: ArrayLike) -> jax.Array:
    """(1 - m) logistic(z) + m exp(-z), m = sigmoid(z / temperature): not convex.

    m exp(-z) is taken in one exponent, so that it is 0, not 0 times infinity, far below 0; a
    temperature of 1 or more has no such limit and is for z of moderate size. temperature > 0.
    """
    _checks.positive("temperature", temperature)
    exponential = jnp.exp(jax.nn.log_sigmoid(z / temperature) - z)
    return jax.nn.sigmoid(-z / temperature) * logistic(z) + exponential
