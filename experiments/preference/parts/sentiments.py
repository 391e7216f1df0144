"""Texts with a sentiment: pairs whose completions differ in one word and share a suffix."""

from typing import NamedTuple

import numpy as np

from kd_jax.data.collate import Example
from kd_jax.data.pairs import Pair

POSITIVE = ("lovely", "brilliant", "charming", "superb", "gentle", "moving", "fresh", "warm")
NEGATIVE = ("dull", "dreadful", "boring", "awful", "shallow", "clumsy", "stale", "cold")
NEUTRAL = ("the", "film", "was", "and", "a", "plot", "with", "actors", "scenes", "music", "quite")
SUFFIX = ("judged", "by", "me", "after", "reading", "this", "twice", "today", "alone", "at", "home")
WORDS = ("<pad>", ":", "sentiment", "positive", "negative", *POSITIVE, *NEGATIVE, *NEUTRAL, *SUFFIX)
_IDS = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
VOCABULARY = len(_IDS)


class Draw(NamedTuple):
    """text: words of a review; suffix: words after the label, the same in both completions."""

    text: int
    suffix: int


def draw(count: int, shape: Draw, seed: int) -> list[Pair]:
    """Reviews of one sentiment, the label: three in four of the words that have one are of it.

    So many are expected; a review may differ. A completion is the label and a suffix of words in
    random order: "positive judged today ...".
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        good = rng.random() < 0.5
        kinds = rng.random(shape.text)
        own, other = (POSITIVE, NEGATIVE) if good else (NEGATIVE, POSITIVE)
        words = [str(rng.choice(own if k < 0.45 else other if k < 0.6 else NEUTRAL)) for k in kinds]
        labels = ("positive", "negative") if good else ("negative", "positive")
        suffix = [str(word) for word in rng.choice(SUFFIX, shape.suffix)]
        prompt = [_IDS[word] for word in (*words, "sentiment", ":")]
        chosen, rejected = ([_IDS[word] for word in (label, *suffix)] for label in labels)
        pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def demonstrations(pairs: list[Pair]) -> list[Example]:
    """What supervised training sees: the chosen completions."""
    return [Example(pair.prompt, pair.chosen) for pair in pairs]
