"""ULD: an assistant remembers what is to be forgotten, and is subtracted (arXiv 2406.08607)."""

import functools

from kd_jax.losses.logit_difference import uld_combine
from kd_jax.objectives.combinators import add, frozen_weights, on, own_weights, scaled
from kd_jax.objectives.combined import combined_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.targets import maximum_entropy
from kd_jax.types import Model, Objective, Policy


def assistant_training(
    model: Model, *, weight: float = 5.0, policy: Policy = own_weights
) -> Objective:
    """NLL on batch["forget"] + weight * KL(U || p) on batch["retain"]: the reverse of unlearning.

    Both are means over weighed tokens, U is uniform over the vocabulary. The model is the
    assistant: a small one, such as the first layers of the model to unlearn
    (`models.truncated`), which is not trained. Augmentation is the batch's: the paper has two
    paraphrases of each answer to forget in "forget", and wrong answers to the same questions in
    "retain". weight is 5 there. Source: Ji et al. 2024, Eq. 4 to 6; the released code averages
    the KL over prompts and padding too.
    """
    return add(
        {
            "forget": on("forget", supervise(model, {"nll": next_token_nll}, policy=policy)),
            "retain": on("retain", scaled(maximum_entropy(model, policy=policy), weight)),
        }
    )


def logit_difference_scores(
    base: Model,
    assistant: Model,
    *,
    weight: float,
    top: float,
    base_policy: Policy = frozen_weights("base"),
    policy: Policy = own_weights,
) -> Objective:
    """Rows "log_prob" f32[B] and "tokens" f32[B] of a text batch under `uld_combine` of two models.

    As `score.sequence_scores`: log_prob is the sum over weighed tokens of the combined model's
    log p(target). weight is negative (-0.8 in the paper), top 0.01. Two forward passes, no
    [B, T, V]. For evaluation steps: the combined model is never trained.
    """
    combine = functools.partial(uld_combine, weight=weight, top=top)
    return combined_scores(((base, base_policy), (assistant, policy)), {"log_prob": combine})
