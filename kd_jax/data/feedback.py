"""Scored text for language modelling: documents of segments, each with a score of how bad it is.

A document is a list of segments (sentences or lines) of token ids. Korbak et al. 2023, pretraining
language models with human preferences (arXiv 2302.08582), and its released code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import collate

Segments = Sequence[Sequence[int]]


class Tags(NamedTuple):
    """The ids of two control tokens, "<|aligned|>" and "<|misaligned|>" in the paper."""

    aligned: int
    misaligned: int


def filter_documents(scores: Sequence[Sequence[float]], *, threshold: float) -> np.ndarray:
    """bool[N]: which documents to keep, those whose mean score is at most the threshold.

    scores: of each segment of each document, without weights by length. In the paper the threshold
    is a percentile of the scores of the data (0.00078 for toxicity). Shuffle rows after this, and
    repeat them where as many steps are wanted as on all documents.
    """
    if any(len(document) == 0 for document in scores):
        raise ValueError("scores: got a document without segments")
    return np.array([np.mean(document) <= threshold for document in scores], bool)


def conditional_prefix(
    segments: Segments,
    scores: Sequence[float],
    tags: Tags,
    *,
    threshold: float,
    rng: np.random.Generator,
    drop: float = 0.01,
) -> list[list[int]]:
    """Every segment behind its tag: tags.aligned where its score is at most the threshold.

    drop: the share of segments that stay without a tag, so that text without one is learnt too;
    drawn from rng, one number a segment. 0.01 in the paper, with a threshold of 0.00056 for
    toxicity. To generate, begin with tags.aligned and ban both tags
    (`models.sampler.generate(banned=)`).
    """
    _same_number(segments, scores)
    if not 0 <= drop <= 1:
        raise ValueError(f"drop: got {drop}, takes a number in [0, 1]")
    kept = rng.random(len(segments)) >= drop
    return [
        [tags.aligned if score <= threshold else tags.misaligned, *segment]
        if tagged
        else list(segment)
        for segment, score, tagged in zip(segments, scores, kept, strict=True)
    ]


def collate_scored(
    segments: Segments, scores: Sequence[float], *, length: int, pad_id: int = 0
) -> dict[str, Any]:
    """`collate.collate_text` of the segments joined, with scores f32[B, T] beside the targets.

    scores[b, t] is that of the segment that targets[b, t] belongs to, and 0 on padding. Ends of
    segments (the newline) and of documents (their end-of-sequence token) are theirs already.
    """
    _same_number(segments, scores)
    rows = collate.collate_text(segments, length=length, eos_id=None, pad_id=pad_id)
    spread = np.repeat(np.asarray(scores, np.float32), [len(segment) for segment in segments])[1:]
    beside = np.zeros(rows["targets"].size, np.float32)
    beside[: len(spread)] = spread
    return rows | {"scores": beside.reshape(rows["targets"].shape)}


def _same_number(segments: Segments, scores: Sequence[float]) -> None:
    if len(segments) != len(scores):
        raise ValueError(
            f"scores: got {len(scores)}, takes one for each of {len(segments)} segments"
        )
