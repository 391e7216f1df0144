"""Two-player preference games over n actions, regularised towards a reference policy.

P[i, j] is the probability that action i is preferred to action j, so that P + P' = 1; it may be
intransitive. Of two policies the first receives

    J(p, q) = p' P q - tau KL(p || ref) + tau KL(q || ref),

and the second 1 - J. Source: Munos et al. 2023, arXiv 2312.00886; Zhang et al. 2024 (INPO), arXiv
2407.00617, section 3. float32, to be jitted and vmapped; policies [n] are above 0 where the
reference is.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Preference = Float[Array, "n n"]
Distribution = Float[Array, " n"]


def value(
    preference: Preference,
    first: Distribution,
    second: Distribution,
    reference: Distribution,
    *,
    tau: ArrayLike,
) -> Float[Array, ""]:
    """J(first, second), what the first player receives; 1/2 where both play the same."""
    own, other = (rel_entr(policy, reference).sum() for policy in (first, second))
    return first @ preference @ second - tau * own + tau * other


def best_response(
    preference: Preference, policy: Distribution, reference: Distribution, *, tau: ArrayLike
) -> Distribution:
    """The p that maximises J(p, policy): p(y) proportional to ref(y) exp(P(y > policy) / tau).

    tau > 0. The policy that is its own best response is the Nash policy.
    """
    return jax.nn.softmax(_logits(preference, policy, reference, tau))


def duality_gap(
    preference: Preference, policy: Distribution, reference: Distribution, *, tau: ArrayLike
) -> Float[Array, ""]:
    """max_p J(p, policy) - min_q J(policy, q) = 2 max_p J(p, policy) - 1; 0 at the Nash policy.

    In the units of J, at least 0 but for rounding. tau > 0.
    """
    best = tau * jax.nn.logsumexp(_logits(preference, policy, reference, tau))
    return jnp.asarray(2 * (best + tau * rel_entr(policy, reference).sum()) - 1)


def omd_update(
    preference: Preference,
    policy: Distribution,
    reference: Distribution,
    *,
    eta: ArrayLike,
    tau: ArrayLike,
) -> Distribution:
    """A step of online mirror descent against the policy itself, towards the Nash policy.

    p(y) proportional to exp(P(y > policy) / eta) ref(y)^(tau / eta) policy(y)^(1 - tau / eta).
    eta > 0: a step's size is 1 / eta. tau in [0, eta]: tau = eta is `best_response`, tau = 0
    forgets the reference. Source: arXiv 2407.00617, equation of section 3 (number UNVERIFIED).
    """
    share = tau / eta
    pull = preference @ policy / eta
    return jax.nn.softmax(pull + share * jnp.log(reference) + (1 - share) * jnp.log(policy))


def _logits(
    preference: Preference, policy: Distribution, reference: Distribution, tau: ArrayLike
) -> Float[Array, " n"]:
    return preference @ policy / tau + jnp.log(reference)
