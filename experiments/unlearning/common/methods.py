"""The unlearning methods: each an objective on the parts of a batch.

Coefficients are the papers' or those of released configurations (the objectives' docstrings say
which); the learning rate is the protocol's, the same for all.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from kd_jax.losses import f_divergences
from kd_jax.objectives.combinators import add, on, scaled
from kd_jax.objectives.constrained import primal_dual
from kd_jax.objectives.references import precomputed
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn import features, likelihood, preference, refusal, retain, targets
from kd_jax.objectives.unlearn.divergence import flat
from kd_jax.types import Model, Objective, Policy

# In a part: log-probabilities of its answers under the model before unlearning.
REFERENCE = "reference_log_probs"


class Setting(NamedTuple):
    """What a method's objective is made of.

    policy: of what is trained. reference: of a frozen copy of the model before unlearning, where
    the method reads one. beta: of the methods with a sigmoid of log-ratios. depth: of the model.
    steps: of the training.
    """

    model: Model
    policy: Policy
    reference: Policy
    beta: float
    depth: int
    steps: int


Make = Callable[[Setting], Objective]


class Method(NamedTuple):
    """label, group: in plots. parts: of a batch, that the objective reads. reference: whether it
    reads the frozen reference."""

    label: str
    group: str
    objective: Make
    parts: tuple[str, ...] = ("forget", "retain")
    reference: bool = False


def ga(s: Setting) -> Objective:
    """Gradient ascent on the answers to forget."""
    return on("forget", likelihood.gradient_ascent(s.model, policy=s.policy))


def wga(s: Setting) -> Objective:
    """Ascent weighted by the probability of each token."""
    ascent = likelihood.weighted_gradient_ascent(s.model, beta=1.0, policy=s.policy)
    return on("forget", ascent)


def satimp(s: Setting) -> Objective:
    """Ascent weighted by saturation and importance of each token, times 0.1."""
    ascent = likelihood.satimp(s.model, beta_1=5.0, beta_2=1.0, policy=s.policy)
    return on("forget", scaled(ascent, 0.1))


def npo(s: Setting) -> Objective:
    """Negative preference optimisation on the answers to forget."""
    stored = precomputed(REFERENCE)
    return on(
        "forget",
        preference.negative_preference(s.model, stored, beta=s.beta, policy=s.policy),
    )


def simnpo(s: Setting) -> Objective:
    """SimNPO: of mean log-probabilities, without a reference; times 0.125."""
    simple = preference.simple_negative_preference(s.model, beta=4.5, policy=s.policy)
    return on("forget", scaled(simple, 0.125))


def dpo(s: Setting) -> Objective:
    """A refusal preferred to the answer to forget."""
    stored = precomputed(REFERENCE)
    return refusal.refusal_preference(s.model, stored, beta=s.beta, policy=s.policy)


def idk(s: Setting) -> Objective:
    """Refusals and answers to keep, learnt as one batch."""
    return refusal.idk(s.model, policy=s.policy)


def idk_rt(s: Setting) -> Objective:
    """Refusals and answers to keep, weights 1 and 1."""
    return refusal.idk_difference(s.model, policy=s.policy)


def idk_ap(s: Setting) -> Objective:
    """Refusals, and answers to keep preferred to refusals."""
    return refusal.idk_preservation(s.model, beta=s.beta, policy=s.policy)


def flat_tv(s: Setting) -> Objective:
    """FLAT by total variation: refusals against the answers to forget, nothing else."""
    return flat(s.model, divergence=f_divergences.TOTAL_VARIATION, policy=s.policy)


def undial(s: Setting) -> Objective:
    """The reference's own distribution with the answer's logits lowered."""
    adjusted = targets.undial(s.model, beta=10.0, policy=s.policy, reference=s.reference)
    return on("forget", adjusted)


def ce_u(s: Setting) -> Objective:
    """The model's own distribution without the answer's token."""
    return on("forget", targets.ce_u(s.model, policy=s.policy))


def maximum_entropy(s: Setting) -> Objective:
    """Towards the uniform distribution on the answers to forget."""
    return on("forget", targets.maximum_entropy(s.model, policy=s.policy))


def pdu(s: Setting) -> Objective:
    """Flat logits on the answers to forget, while the loss of those to keep stays low.

    The limit on that loss is ours (UNVERIFIED), as is the share of the steps before the multiplier
    moves: 5 of 10 epochs in the released code.
    """
    margin = on("forget", targets.logit_margin(s.model, policy=s.policy))
    return primal_dual(margin, kept(s), limit=0.3, warmup_steps=s.steps // 2)


def rmu(s: Setting) -> Objective:
    """States of an early layer towards a random direction, those of answers to keep held.

    The paper's layer is 7 of 32: the same share of the depth here.
    """
    place = f"block_{(7 * s.depth) // 32}"
    return add(
        {
            "forget": on(
                "forget",
                features.misdirection(s.model, place, coefficient=2.0, policy=s.policy),
            ),
            "retain": on(
                "retain",
                features.feature_retention(s.model, place, policy=s.policy, reference=s.reference),
            ),
        }
    )


def kept(s: Setting) -> Objective:
    """The loss of the answers to keep."""
    return on("retain", supervise(s.model, {"nll": next_token_nll}, policy=s.policy))


def with_retain(make: Make) -> Make:
    """The method plus the loss of the answers to keep, weights 1 and 1."""
    return lambda s: add({"forget": make(s), "retain": kept(s)})


def with_kl(make: Make) -> Make:
    """The method plus KL(reference || current) on the answers to keep, weights 1 and 1."""

    def objective(s: Setting) -> Objective:
        held = retain.kl_retain(s.model, policy=s.policy, reference=s.reference)
        return add({"forget": make(s), "retain": on("retain", held)})

    return objective


_FORGET = ("forget",)
_REFUSE = ("refusal", "retain")

# What a command line offers.
Name = Literal[
    "ga",
    "graddiff",
    "ga_kl",
    "wga",
    "satimp",
    "npo",
    "npo_rt",
    "npo_kl",
    "simnpo",
    "dpo",
    "dpo_rt",
    "idk",
    "idk_rt",
    "idk_ap",
    "flat",
    "undial",
    "ce_u",
    "me_gd",
    "pdu",
    "rmu",
]

METHODS: dict[Name, Method] = {
    "ga": Method("GA", "ascent", ga, _FORGET),
    "graddiff": Method("GradDiff", "ascent", with_retain(ga)),
    "ga_kl": Method("GA+KL", "ascent", with_kl(ga), reference=True),
    "wga": Method("WGA", "ascent", with_retain(wga)),
    "satimp": Method("SatImp", "ascent", with_retain(satimp)),
    "npo": Method("NPO", "preference", npo, _FORGET),
    "npo_rt": Method("NPO+RT", "preference", with_retain(npo)),
    "npo_kl": Method("NPO+KL", "preference", with_kl(npo), reference=True),
    "simnpo": Method("SimNPO", "preference", with_retain(simnpo)),
    "dpo": Method("DPO", "preference", dpo, ("forget", "refusal")),
    "dpo_rt": Method("DPO+RT", "preference", with_retain(dpo), ("forget", "refusal", "retain")),
    "idk": Method("IDK", "refusal", idk, _REFUSE),
    "idk_rt": Method("IDK+RT", "refusal", idk_rt, _REFUSE),
    "idk_ap": Method("IDK+AP", "refusal", idk_ap, (*_REFUSE, "retain_refusal")),
    "flat": Method("FLAT", "refusal", flat_tv, ("forget", "refusal")),
    "undial": Method("UNDIAL", "targets", undial, _FORGET, reference=True),
    "ce_u": Method("CE-U", "targets", ce_u, _FORGET),
    "me_gd": Method("ME+GD", "targets", with_retain(maximum_entropy)),
    "pdu": Method("PDU", "targets", pdu),
    "rmu": Method("RMU", "targets", rmu, reference=True),
}
