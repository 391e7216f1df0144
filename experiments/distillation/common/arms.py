"""The losses that students of the family learn by, by name."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from kd_jax.losses import divergences, top_k
from kd_jax.objectives.distil import TokenLoss, distil, token_divergence
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.taid import taid
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Model, Objective

# TAID's alpha times the number of steps: the released code's 5e-4 over 10,000 steps. With 5e-4 over
# hundreds of steps the clock is never ahead of time, and all that is adaptive about it is lost.
TAID_PACE = 5.0


class Arm(NamedTuple):
    """A way to train: (student, teacher, steps) -> Objective."""

    label: str
    make: Callable[[Model, Model, int], Objective]


def _tail(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    """The teacher's four likeliest characters and the rest as one."""
    known = top_k.likeliest(t, k=4)
    return top_k.top_k_kl_with_tail(s, *known)


LOSSES: dict[str, TokenLoss] = {
    "forward": lambda s, t, y: divergences.forward_kl(s, t),
    "reverse": lambda s, t, y: divergences.reverse_kl(s, t),
    "jsd": lambda s, t, y: divergences.jensen_shannon(s, t, beta=0.5),
    "skew": lambda s, t, y: divergences.skew_forward_kl(s, t, alpha=0.1),
    "skew_reverse": lambda s, t, y: divergences.skew_reverse_kl(s, t, alpha=0.1),
    "tvd": lambda s, t, y: divergences.total_variation(s, t),
    "adaptive": lambda s, t, y: divergences.adaptive_kl(s, t),
    "decoupled": lambda s, t, y: divergences.decoupled_kl(s, t, y, others=0.5),
    "top_4": _tail,
    "split_4": lambda s, t, y: top_k.top_k_split_kl(s, t, k=4),
}


def _by(label: str, loss: str) -> Arm:
    part = token_divergence(LOSSES[loss])
    return Arm(label, lambda s, t, steps: distil(s, t, {"kd": part}))


ARMS = {
    "alone": Arm("text alone", lambda s, t, steps: supervise(s, {"nll": next_token_nll})),
    "forward": _by("forward KL", "forward"),
    "reverse": _by("reverse KL", "reverse"),
    "jsd": _by("JSD 0.5", "jsd"),
    "skew": _by("skew KL 0.1", "skew"),
    "skew_reverse": _by("skew reverse KL 0.1", "skew_reverse"),
    "tvd": _by("total variation", "tvd"),
    "adaptive": _by("adaptive KL", "adaptive"),
    "decoupled": _by("decoupled KD 0.5", "decoupled"),
    "top_4": _by("top 4 and the rest", "top_4"),
    "split_4": _by("TopKLD 4 (inferred)", "split_4"),
    "taid": Arm("TAID", lambda s, t, steps: taid(s, t, steps=steps, alpha=TAID_PACE / steps)),
}
Name = Literal[
    "alone", "forward", "reverse", "jsd", "skew", "skew_reverse", "tvd", "adaptive", "decoupled",
    "top_4", "split_4", "taid",
]  # fmt: skip
