"""Re-introduction of unlearned knowledge by describing it in the prompt (arXiv 2407.00106).

The paper argues that what was unlearned can be put back in context, and that a model retrained
without it uses it there as well. It gives no protocol: this one is our reading (UNVERIFIED). The
same questions are asked with no context, with a context that gives the forgotten facts away, and
with an irrelevant one of equal length; what the second gains over the third is put down to its
content. Run it on the model before unlearning, the unlearned and the retrained one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kd_jax.evaluation.rouge import rouge_l_recall, tokens


class Gains(NamedTuple):
    """[N] each, in the units of the scores. net = context - control."""

    context: np.ndarray
    control: np.ndarray

    @property
    def net(self) -> np.ndarray:
        return self.context - self.control


def gains(plain: ArrayLike, context: ArrayLike, control: ArrayLike) -> Gains:
    """What a context adds: S(context) - S(plain), and S(control) - S(plain), per question.

    [N] each, the same N questions, higher = closer to the true answer (recall, probability).
    plain: without context. context: after the facts. control: after irrelevant ones of equal
    length, so that a gain there comes from having any context. An empty context gains 0.
    """
    scores = [np.asarray(x, np.float64) for x in (plain, context, control)]
    for name, x in zip(("plain", "context", "control"), scores, strict=True):
        if x.ndim != 1 or not len(x) or len(x) != len(scores[0]):
            raise ValueError(
                f"{name}: got shape {x.shape}, takes a non-empty [N] for the questions of plain, "
                f"{scores[0].shape}"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: takes finite numbers")
    return Gains(scores[1] - scores[0], scores[2] - scores[0])


def gives_away(context: str, answer: str) -> bool:
    """Whether the answer's tokens stand in the context one after the other: it can be copied.

    With such a context a gain measures copying; use it beside one that only implies the answer.
    """
    text, wanted = tokens(context), tokens(answer)
    starts = range(len(text) - len(wanted) + 1)
    return bool(wanted) and any(text[i : i + len(wanted)] == wanted for i in starts)


def copyable(context: str, answer: str) -> float:
    """The ROUGE-L recall of the answer by the context itself, in [0, 1].

    As much as an answer copied out of the context could score: what stands above it was inferred,
    or known.
    """
    return rouge_l_recall(context, answer)


def control_tokens(pieces: Sequence[Sequence[int]], length: int) -> list[int]:
    """Tokens of the pieces one after the other, cut at exactly `length`: a control's context.

    pieces: irrelevant texts, in the order to take them. ValueError where they are too short.
    """
    found: list[int] = []
    for piece in pieces:
        if len(found) >= length:
            break
        found += piece
    if len(found) < length:
        raise ValueError(f"pieces: got {len(found)} tokens, takes at least length, {length}")
    return found[:length]
