"""MUSE's six criteria (arXiv 2407.06460) as functions of texts and per-sample arrays.

Of the data's owner: no verbatim memorisation, no knowledge memorisation, no privacy leakage. Of
the deployer: utility, scalability (with the size of the forget set) and sustainability (along a
stream of requests). Figures are in percent, as in the paper.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kd_jax.evaluation import membership
from kd_jax.evaluation.rouge import rouge_l_f

# Where an answer to a question ends.
STOPS = ("\n\n", "\nQuestion", "Question:")
# New tokens of a continuation, which the true one is cut to as well, and of an answer.
CONTINUATION_TOKENS = 128
ANSWER_TOKENS = 32
# Privacy leakage, in percent, on either side of 0.
TOLERANCE = 5.0


def cut(text: str, stops: Sequence[str] = STOPS) -> str:
    """The text up to the first of the stop strings."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


def question_prompt(examples: Sequence[tuple[str, str]], question: str) -> str:
    """Answered questions, and one that is not: "Question: q\\nAnswer: a\\n\\n" ... "Answer: ".

    The released code's format; the space at its end is UNVERIFIED.
    """
    answered = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in examples)
    return f"{answered}Question: {question}\nAnswer: "


def verbatim_memorisation(continuations: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """100 ROUGE-L F [N] of greedy continuations of the first part of a text with the true ones.

    Both cut at `CONTINUATION_TOKENS` new tokens before. The criterion's figure is the mean.
    Section 3; F-measure without stemming, as in the released code.
    """
    return _overlaps(continuations, truths)


def knowledge_memorisation(answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """100 ROUGE-L F [N] of greedy answers, each `cut`, with the true ones.

    On questions about the forget set, lower is better; about the retain set it is the utility.
    Section 3.
    """
    return _overlaps([cut(answer) for answer in answers], truths)


def forget_auc(forget: ArrayLike, holdout: ArrayLike) -> float:
    """P(forget > holdout) + P(equal) / 2 over all pairs, in [0, 1].

    forget [n], holdout [m]: membership scores that are low for members, such as the min-k% loss
    (MUSE: k = 0.4, over a whole text but its first token, int(k L) of L tokens). Near 0 where
    the model remembers the forget set, 0.5 where nothing tells the two apart. It is MUSE's
    orientation: 1 - `membership.auc(forget, holdout)`.
    """
    return membership.auc(holdout, forget)


def privacy_leakage(unlearned: float, retrained: float) -> float:
    """100 (AUC(unlearned) - AUC(retrained)) / AUC(retrained), in percent; of `forget_auc`s.

    0 is ideal. Near -100 where the forget set still looks like training data (under-unlearned);
    far above 0 where it looks less familiar than data never seen (over-unlearned). Section 3.
    `membership.privacy_leakage` of AUCs turned round.
    """
    return membership.privacy_leakage(1.0 - unlearned, 1.0 - retrained)


class Scores(NamedTuple):
    """A model's figures, in percent; `knowledge_retain` is its utility."""

    verbatim: float
    knowledge_forget: float
    privacy_leakage: float
    knowledge_retain: float


class Met(NamedTuple):
    """Which of the first four criteria a model meets."""

    verbatim: bool
    knowledge_forget: bool
    privacy_leakage: bool
    knowledge_retain: bool


def met(scores: Scores, retrained: Scores) -> Met:
    """Which criteria hold, beside a model retrained without the forget set.

    Memorisation of either kind not above the retrained model's, privacy leakage within 5 of 0,
    utility not below the retrained model's (Table 3).
    """
    return Met(
        scores.verbatim <= retrained.verbatim,
        scores.knowledge_forget <= retrained.knowledge_forget,
        abs(scores.privacy_leakage) <= TOLERANCE,
        scores.knowledge_retain >= retrained.knowledge_retain,
    )


class Curve(NamedTuple):
    """The criteria along sizes of the forget set (scalability) or requests (sustainability).

    places [n], rising. scores and met: {criterion: [n]}, of `Scores` and of `Met`. lost [n]:
    utility lost since the first place, in percentage points.
    """

    places: np.ndarray
    scores: dict[str, np.ndarray]
    met: dict[str, np.ndarray]
    lost: np.ndarray


def curve(scores: Mapping[float, tuple[Scores, Scores]]) -> Curve:
    """The fifth and sixth criterion: {size or number of requests: (scores, retrained's)}.

    The paper plots them and sets no bound. At each place the retrained model is the one that
    never saw what is to be forgotten by then. Section 3.
    """
    if not scores:
        raise ValueError("scores: got nothing, takes at least one place")
    places = sorted(scores)
    reached = [scores[place][0] for place in places]
    held = [met(*scores[place]) for place in places]
    figures = {name: np.array([getattr(x, name) for x in reached]) for name in Scores._fields}
    utility = figures["knowledge_retain"]
    return Curve(
        np.array(places),
        figures,
        {name: np.array([getattr(x, name) for x in held]) for name in Met._fields},
        utility[0] - utility,
    )


def chosen_epoch(utility: Sequence[float], retrained: float) -> int:
    """The first epoch, from 0, whose utility is below the retrained model's; else the last.

    utility: knowledge of the retain set after each epoch of unlearning, at least one. Which model
    the paper's tables show (section 4).
    """
    if not len(utility):
        raise ValueError("utility: got nothing, takes at least one epoch")
    return next((i for i, x in enumerate(utility) if x < retrained), len(utility) - 1)


def _overlaps(found: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    if len(found) != len(truths) or not len(truths):
        raise ValueError(
            f"truths: got {len(truths)} texts, takes at least one, and one for each of {len(found)}"
        )
    return 100.0 * np.array([rouge_l_f(a, b) for a, b in zip(found, truths, strict=True)])
