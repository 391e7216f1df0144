"""Self-play on pairs that the last iterate wrote itself (`launch.self_play`)."""

import functools

from kd_jax.losses.preference.margin import ipo
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import Reference
from kd_jax.types import Model, Objective, Policy


def between(reference: Reference, iterate: Reference, *, share: float) -> Reference:
    """share log p_iterate + (1 - share) log p_reference of each row: their geometric mixture, not
    normalised, which pairs do not see. share in [0, 1]; what has no share is not read."""
    if not 0 <= share <= 1:
        raise ValueError(f"share: got {share}, takes a number in [0, 1]")

    # `losses.preference.pairs.anchored` is this of pairs that are at hand.
    def mixed(params, frozen, batch):
        if share in (0, 1):
            return (iterate if share else reference)(params, frozen, batch)
        one, other = (fixed(params, frozen, batch) for fixed in (iterate, reference))
        return share * one + (1 - share) * other

    return mixed


def inpo(
    model: Model,
    reference: Reference,
    iterate: Reference,
    *,
    eta: float,
    tau: float,
    policy: Policy = own_weights,
) -> Objective:
    """A step of INPO: (h - 1 / (2 eta))**2, a mean over pairs written by the iterate.

    h is the margin of the policy over the mixture of reference and iterate: IPO in which the two
    share the reference's part, the iterate with 1 - tau / eta. The term is "inpo", the metrics are
    those of `prefer`; their "margin" is h.
    iterate: of what wrote the pairs and training starts from: `references.precomputed(
    "iterate_log_probs")` of stored pairs, or online, of frozen weights. eta > 0, tau in [0, eta];
    0.005 and eta / 3 in the paper. Source: Zhang et al. 2024, arXiv 2407.00617, section 4.
    """
    if not 0 <= tau <= eta:
        raise ValueError(f"tau: got {tau}, takes numbers from 0 to eta, {eta}")
    fixed = between(reference, iterate, share=1 - tau / eta)
    return prefer(model, {"inpo": functools.partial(ipo, tau=eta)}, fixed, policy=policy)
