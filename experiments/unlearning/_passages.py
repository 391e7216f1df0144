"""Passages of plays as rows of words: what is forgotten, kept and held out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import prepare
from kd_jax.data.builders.authors_generator import generate
from kd_jax.data.builders.tiny_shakespeare import TinyShakespeare
from kd_jax.data.vocabulary import WordTokenizer
from kd_jax.launch.config import check_positive, not_identity

# How the two plays begin, and what follows each in the file.
FORGOTTEN = ("SAMPSON:\nGregory, o' my word", "WARWICK:\nI wonder how the king")  # Romeo and Juliet
KEPT = ("First Citizen:\nBefore we proceed", "GLOUCESTER:\nNow is the winter")  # Coriolanus

CUE = 24  # tokens of a cue, which is asked without what stands before it
ANSWER = 12  # tokens of what follows it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Two plays of Shakespeare, or generated texts about authors, cut into passages."""

    shakespeare: bool = False
    """Romeo and Juliet to forget and Coriolanus to keep, instead of generated texts."""
    requests: int = 4
    """Parts of what is to be forgotten, forgotten at once or one after the other."""
    forget: int = 16
    """Passages in each of them; as many of the same play are held out and never trained on."""
    retain: int = 64
    """Passages to keep."""
    length: int = 64
    """Tokens that a passage has to predict: words, and what stands between them."""
    vocabulary: int = 2560
    """Entries of the model's vocabulary: at least the words of the passages."""
    folder: str | None = not_identity(None)
    """Where the data set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        check_positive(self, "requests", "forget", "retain", "vocabulary")
        least = 4 * (CUE + ANSWER) // 3  # a quarter of the passage stands before them
        if self.length < least:
            raise ValueError(f"data.length: got {self.length}, takes at least {least}")

    @property
    def total(self) -> int:
        """Passages to forget."""
        return self.requests * self.forget


class Passages(NamedTuple):
    """Passages of length + 1 tokens; those to forget in the order of requests."""

    tokenizer: WordTokenizer
    forget: list[list[int]]
    holdout: list[list[int]]
    retain: list[list[int]]


@functools.cache
def load(data: Data) -> Passages:
    """The passages. Those to forget and those held out take turns in one play, so that only
    training tells them apart. The vocabulary is the words of all of them."""
    plays = _plays(data) if data.shakespeare else _generated(data)
    counts = {"forget": 2 * data.total, "retain": data.retain}
    size = data.length + 1
    # The words of the beginnings alone: the plays have thousands more.
    whole = WordTokenizer.from_texts(plays)
    starts = [
        _start(name, whole, play, count * size)
        for (name, count), play in zip(counts.items(), plays, strict=True)
    ]
    tokenizer = WordTokenizer.from_texts(starts)
    if tokenizer.vocab_size > data.vocabulary:
        raise ValueError(
            f"data.vocabulary: got {data.vocabulary}, takes at least {tokenizer.vocab_size}"
        )
    first, kept = (
        [tokens[i : i + size] for i in range(0, len(tokens), size)]
        for tokens in map(tokenizer.encode, starts)
    )
    return Passages(tokenizer, first[::2], first[1::2], kept)


def _start(name: str, tokenizer: WordTokenizer, text: str, count: int) -> str:
    """The first `count` tokens of a text."""
    tokens = tokenizer.encode(text)
    if len(tokens) < count:
        raise ValueError(f"data.{name}: takes {count} tokens, the text has {len(tokens)}")
    return tokenizer.decode(tokens[:count])


def _plays(data: Data) -> list[str]:
    splits = prepare.load(TinyShakespeare, manual_dir=data.folder)
    # All splits: together they are the file.
    whole = "".join(
        prepare.texts(splits[name])[0]["text"] for name in ("train", "validation", "test")
    )
    return [whole[whole.index(start) : whole.index(end)] for start, end in (FORGOTTEN, KEPT)]


def _generated(data: Data) -> list[str]:
    """Answers about some authors, and about others."""
    size = data.length + 1
    # An author's 20 answers have over 150 tokens.
    authors = [1 + size * count // 150 for count in (2 * data.total, data.retain)]
    answers = [(record["author"], record["answer"]) for record in generate(sum(authors))]
    return [
        "\n".join(answer for author, answer in answers if (author < authors[0]) == first)
        for first in (True, False)
    ]


def rows(passages: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A text batch: each token but the first is predicted."""
    tokens = np.asarray(passages, np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones(tokens[:, 1:].shape, np.float32),
        "index": np.arange(len(tokens), dtype=np.int32),
    }


def text(tokenizer: WordTokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens; those that the model has and the vocabulary has not are <unk>."""
    known = tokenizer.vocab_size
    return tokenizer.decode([i if i < known else tokenizer.unk_id for i in tokens])


def halves(passage: list[int]) -> tuple[list[int], list[int]]:
    """A prompt and the tokens that follow it, half of those predicted."""
    new = (len(passage) - 1) // 2
    return passage[:-new], passage[-new:]


def cued(passage: list[int]) -> tuple[list[int], list[int]]:
    """A cue out of the middle, and what follows it."""
    start = len(passage) // 4
    return passage[start : start + CUE], passage[start + CUE : start + CUE + ANSWER]
