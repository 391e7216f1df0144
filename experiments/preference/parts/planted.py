"""Lines of a text, of which some begin with a curse, and scores that say so."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.distillation.common import text as text_lib
from kd_jax.data.feedback import (
    Tags,
    collate_scored,
    conditional_prefix,
    filter_documents,
)

CURSE = "@#%!"
TAGS = Tags(len(text_lib.CHARACTERS), len(text_lib.CHARACTERS) + 1)
VOCAB = len(text_lib.CHARACTERS) + 2
THRESHOLD = 0.5  # scores are 0 and 1


class Source(NamedTuple):
    """Where lines come from: tiny Shakespeare or generated sentences about authors."""

    shakespeare: bool
    folder: str | None


class Scored(NamedTuple):
    """Lines with their newline, as token ids, and 1.0 for each with a curse, else 0.0."""

    lines: list[list[int]]
    scores: list[float]


@functools.cache
def lines(source: Source) -> tuple[list[str], list[str]]:
    """(trained on, held out): what is spoken, in lines from 20 characters on, cut to 60."""
    read = text_lib.read(text_lib.Text(shakespeare=source.shakespeare, folder=source.folder))
    spoken, rest = ([line[:60] for line in part.split("\n") if len(line) >= 20] for part in read)
    return spoken, rest


def cursed(found: Sequence[str], share: float, seed: int) -> Scored:
    """The lines, of which so large a share, drawn by the seed, begins with a curse."""
    rng = np.random.default_rng(seed)
    bad = rng.permutation(len(found)) < round(share * len(found))
    said = [
        text_lib.characters((f"{CURSE} {line}" if curse else line) + "\n")
        for line, curse in zip(found, bad, strict=True)
    ]
    return Scored(said, bad.astype(float).tolist())


def is_bad(line: str) -> bool:
    """Whether a line has the first character of the curse, which stands nowhere else."""
    return CURSE[0] in line


def filtered(text: Scored) -> Scored:
    """The lines that are not bad."""
    kept = filter_documents([[score] for score in text.scores], threshold=THRESHOLD)
    pairs = [pair for pair, keep in zip(zip(*text, strict=True), kept, strict=True) if keep]
    return Scored([line for line, _ in pairs], [score for _, score in pairs])


def tagged(text: Scored, drop: float, seed: int) -> Scored:
    """Every line behind the tag of its score, but for a share of `drop`."""
    rng = np.random.default_rng(seed)
    found = conditional_prefix(
        text.lines, text.scores, TAGS, threshold=THRESHOLD, rng=rng, drop=drop
    )
    return text._replace(lines=found)


def rows(text: Scored, length: int) -> dict[str, Any]:
    """A text batch with scores beside the targets, cut from the lines in their order."""
    return collate_scored(text.lines, text.scores, length=length)


def measured(text: Scored, length: int) -> dict[str, Any]:
    """The same without scores, and without weight where a tag is predicted."""
    found = rows(text, length)
    tags = np.isin(found["targets"], TAGS)
    plain = {name: x for name, x in found.items() if name != "scores"}
    return plain | {"weights": np.where(tags, 0, found["weights"]).astype(np.float32)}
