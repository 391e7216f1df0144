"""The unlearning methods of npo_tofu: batch["forget"] and, with a retain term, batch["retain"]."""

from collections.abc import Callable

from kd_jax.objectives.combinators import add, on
from kd_jax.objectives.references import precomputed
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.likelihood import gradient_ascent, gradient_difference
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.types import Model, Objective, Policy

# In batch["forget"]: log-probabilities of its answers under the model before unlearning.
REFERENCE = "reference_log_probs"


def ga(model: Model, policy: Policy, beta: float) -> Objective:
    """Gradient ascent on the answers to forget; beta is not used."""
    return on("forget", gradient_ascent(model, policy=policy))


def graddiff(model: Model, policy: Policy, beta: float) -> Objective:
    """Gradient ascent plus the loss of the answers to keep; beta is not used."""
    return gradient_difference(model, policy=policy)


def npo(model: Model, policy: Policy, beta: float) -> Objective:
    """Negative preference optimisation on the answers to forget."""
    preference = negative_preference(model, precomputed(REFERENCE), beta=beta, policy=policy)
    return on("forget", preference)


def npo_rt(model: Model, policy: Policy, beta: float) -> Objective:
    """NPO plus the loss of the answers to keep, weights 1 and 1."""
    retain = on("retain", supervise(model, {"nll": next_token_nll}, policy=policy))
    return add({"forget": npo(model, policy, beta), "retain": retain})


METHODS: dict[str, Callable[[Model, Policy, float], Objective]] = {
    "ga": ga,
    "graddiff": graddiff,
    "npo": npo,
    "npo_rt": npo_rt,
}
