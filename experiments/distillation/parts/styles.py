"""Texts of weak_to_strong: a general one, and two styles that models are fine-tuned to."""

import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.distillation.common import text as text_lib
from experiments.distillation.common.text import CHARACTERS, Corpus, Text


class Style(NamedTuple):
    """rate(continuations) -> the share of what was written that is in the style, in [0, 1]."""

    label: str
    corpus: Callable[[Text], Corpus]
    rate: Callable[[Sequence[str]], float]


def bare(text: str) -> str:
    """Words in lower case with a space between them: no capitals, punctuation or lines."""
    return " ".join(re.findall(r"[a-z]+", text.lower().replace("'", "")))


def sums(characters: int, *, held_out: bool = False, ends: Sequence[str] = ("\n",)) -> str:
    """So many characters of sums such as 34+5=39, each with one of the ends; the same every time.

    Of two digits and one; a tenth of all pairs is held out.
    """
    rng = np.random.default_rng(0)
    pairs = rng.permutation([(a, b) for a in range(10, 100) for b in range(10)])
    known = pairs[:90] if held_out else pairs[90:]
    drawn = known[rng.integers(0, len(known), characters // 7 + 1)].tolist()
    after = rng.integers(0, len(ends), len(drawn)).tolist()
    found = (f"{a}+{b}={a + b}{ends[end]}" for (a, b), end in zip(drawn, after, strict=True))
    return "".join(found)[:characters]


def bare_rate(continuations: Sequence[str]) -> float:
    """The share of characters that are lower-case letters or spaces."""
    written = "".join(continuations)
    return sum(c in string.ascii_lowercase + " " for c in written) / max(1, len(written))


def right_rate(continuations: Sequence[str]) -> float:
    """The share of whole lines that are right sums; 0 of no lines."""
    lines = [line for text in continuations for line in text.split("\n")[1:-1]]
    found = [re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line) for line in lines]
    right = [bool(m) and int(m[1]) + int(m[2]) == int(m[3]) for m in found]
    return sum(right) / max(1, len(lines))


@functools.cache
def _bare_corpus(text: Text) -> Corpus:
    return text_lib.corpus(text, lambda part: text_lib.characters(bare(part)))


@functools.cache
def _sums_corpus(text: Text) -> Corpus:
    train, rest = map(len, text_lib.read(text))
    known, new = sums(train), sums(rest, held_out=True)
    return text_lib.pieces(text, text_lib.characters(known), text_lib.characters(new))


STYLES = {
    "bare": Style("bare words", _bare_corpus, bare_rate),
    "sums": Style("sums in lines", _sums_corpus, right_rate),
}


RUNNING = (". ", ". ", ". ", ". ", "\n")


@functools.cache
def general(text: Text, share: float) -> np.ndarray:
    """Rows of the text as it is, and of sums, so that these are a share of all rows.

    A fifth of the sums end their line, the others run on, "34+5=39. 62+8=70. ": what a sum comes to
    is learnt here; that each has a line of its own is the style.
    """
    plain = text_lib.load(text).train
    count = round(len(plain) * share / (1 - share))
    running = text_lib.characters(sums(count * plain.shape[1], ends=RUNNING))
    return np.concatenate([plain, np.array(running, plain.dtype).reshape(count, -1)])


def decoded(tokens: np.ndarray) -> str:
    return "".join(CHARACTERS[token] for token in tokens)
