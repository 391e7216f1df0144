"""What preference losses read of pairs of completions, and what they all make of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks


class Pairs(NamedTuple):
    """P pairs of completions, each field f32 [P].

    policy_chosen, policy_rejected: log pi(y | x), SUMS over the completion's tokens
        (`losses.sequence.sequence_log_probs`).
    reference_chosen, reference_rejected: the same under a model that does not learn; None for
        losses that need no reference. Nothing is stopped here: the objective stops the reference.
    chosen_lengths, rejected_lengths: tokens of the completions; None for losses of sums.
    """

    policy_chosen: Float[Array, " P"]
    policy_rejected: Float[Array, " P"]
    reference_chosen: Float[Array, " P"] | None = None
    reference_rejected: Float[Array, " P"] | None = None
    chosen_lengths: Float[Array, " P"] | None = None
    rejected_lengths: Float[Array, " P"] | None = None


# One value a pair, [P].
PairLoss = Callable[[Pairs], jax.Array]


def log_ratios(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """(c, r): log policy - log reference of chosen and rejected, f32 [P] each."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = _fields(pairs, slice(4))
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def margin(pairs: Pairs) -> jax.Array:
    """u = c - r: how much more the policy prefers the chosen than its reference does, f32 [P]."""
    chosen, rejected = log_ratios(pairs)
    return chosen - rejected


def margins(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """(policy_chosen - policy_rejected, the reference's): u is the first less the second, [P]."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = _fields(pairs, slice(4))
    return policy_chosen - policy_rejected, reference_chosen - reference_rejected


def without_reference(pairs: Pairs) -> Pairs:
    """The pairs under a reference that finds everything equally likely: c = log p, r likewise."""
    none = jnp.zeros(pairs.policy_chosen.shape)
    return pairs._replace(reference_chosen=none, reference_rejected=none)


def anchored(pairs: Pairs, chosen: jax.Array, rejected: jax.Array, *, share: ArrayLike) -> Pairs:
    """The pairs under a reference that goes towards another model, as `share` goes from 0 to 1.

    chosen, rejected [P]: that model's log-probabilities. The new reference is (1 - share) times
    the old one's plus share times these: a geometric mixture of the two models, up to a constant
    that is the same for both completions of a prompt.
    """
    named = {"chosen": chosen, "rejected": rejected}
    _checks.same_shape(policy_chosen=pairs.policy_chosen, **named)
    old_chosen, old_rejected = _fields(pairs, slice(2, 4))
    return pairs._replace(
        reference_chosen=(1 - share) * old_chosen + share * chosen.astype(jnp.float32),
        reference_rejected=(1 - share) * old_rejected + share * rejected.astype(jnp.float32),
    )


def scored(pairs: Pairs, score: Callable[[jax.Array], jax.Array]) -> Pairs:
    """The pairs with (score(c), score(r)) in the place of (c, r); the reference is used up."""
    chosen, rejected = map(score, log_ratios(pairs))
    return without_reference(pairs._replace(policy_chosen=chosen, policy_rejected=rejected))


def lengths(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """(tokens of chosen, tokens of rejected), f32 [P] each."""
    chosen, rejected = _fields(pairs, slice(4, 6))
    return chosen, rejected


def per_token(pairs: Pairs, *, power: float = 1.0) -> Pairs:
    """The pairs with means over tokens in the place of sums; a length of 0 counts as 1.

    power: sums are divided by length**power, RRHF's length penalty.
    """
    chosen, rejected = (jnp.maximum(x, 1.0) ** power for x in lengths(pairs))

    def mean(sums: jax.Array | None, lengths: jax.Array) -> jax.Array | None:
        return None if sums is None else sums.astype(jnp.float32) / lengths

    return pairs._replace(
        policy_chosen=mean(pairs.policy_chosen, chosen),
        policy_rejected=mean(pairs.policy_rejected, rejected),
        reference_chosen=mean(pairs.reference_chosen, chosen),
        reference_rejected=mean(pairs.reference_rejected, rejected),
    )


def _fields(pairs: Pairs, which: slice) -> list[jax.Array]:
    """Some of the fields in float32; ValueError for one that is missing or of another shape."""
    named = dict(list(pairs._asdict().items())[which])
    missing = [name for name, x in named.items() if x is None]
    if missing:
        raise ValueError(f"pairs: got no {', '.join(missing)}, which this loss needs")
    _checks.same_shape(**({"policy_chosen": pairs.policy_chosen} | named))
    return [x.astype(jnp.float32) for x in named.values()]
