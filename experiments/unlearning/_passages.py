"""Passages of plays as rows of characters: what is forgotten, kept and held out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import prepare
from kd_jax.data.builders.authors_generator import generate
from kd_jax.data.builders.tiny_shakespeare import TinyShakespeare
from kd_jax.launch.config import check_positive, not_identity

# Line feed and the printable characters of ASCII; any other becomes "?".
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # 96: the vocabulary

# How the two plays begin, and what follows each in the file.
FORGOTTEN = ("SAMPSON:\nGregory, o' my word", "WARWICK:\nI wonder how the king")  # Romeo and Juliet
KEPT = ("First Citizen:\nBefore we proceed", "GLOUCESTER:\nNow is the winter")  # Coriolanus

CUE = 24  # characters of a cue, which is asked without what stands before it
ANSWER = 32  # characters of what follows it: as many as MUSE takes tokens of an answer


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
    length: int = 256
    """Characters that a passage has to predict."""
    folder: str | None = not_identity(None)
    """Where the data set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        check_positive(self, "requests", "forget", "retain")
        least = 2 * (CUE + ANSWER)
        if self.length < least:
            raise ValueError(f"data.length: got {self.length}, takes at least {least}")

    @property
    def total(self) -> int:
        """Passages to forget."""
        return self.requests * self.forget


class Passages(NamedTuple):
    """Texts of length + 1 characters; those to forget in the order of requests."""

    forget: list[str]
    holdout: list[str]
    retain: list[str]


@functools.cache
def load(data: Data) -> Passages:
    """The passages. Those to forget and those held out take turns in one play, so that only
    training tells them apart."""
    first, second = _plays(data) if data.shakespeare else _generated(data)
    of_first = _cut(first, 2 * data.total, data.length, "forget")
    kept = _cut(second, data.retain, data.length, "retain")
    return Passages(of_first[::2], of_first[1::2], kept)


def _cut(text: str, count: int, length: int, name: str) -> list[str]:
    size = length + 1
    if len(text) < count * size:
        raise ValueError(
            f"data.{name}: takes {count} passages of {size} characters, the text has {len(text)}"
        )
    return [text[i * size : (i + 1) * size] for i in range(count)]


def _plays(data: Data) -> list[str]:
    splits = prepare.load(TinyShakespeare, manual_dir=data.folder)
    # All splits: together they are the file.
    whole = "".join(
        prepare.texts(splits[name])[0]["text"] for name in ("train", "validation", "test")
    )
    return [whole[whole.index(start) : whole.index(end)] for start, end in (FORGOTTEN, KEPT)]


def _generated(data: Data) -> list[str]:
    """Answers about authors, one after the other: those of the first to forget."""
    first, second = ((data.length + 1) * count for count in (2 * data.total, data.retain))
    # An author's 20 answers have over 500 characters.
    records = generate(1 + (first + second) // 500)
    text = "\n".join(record["answer"] for record in records)
    return [text[:first], text[first:]]


def encode(text: str) -> list[int]:
    return [ALPHABET.index(c if c in ALPHABET else "?") for c in text]


def decode(tokens: Sequence[int]) -> str:
    return "".join(ALPHABET[i] for i in tokens)


def rows(passages: Sequence[str]) -> dict[str, Any]:
    """A text batch: each character but the first is predicted."""
    tokens = np.asarray([encode(passage) for passage in passages], np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones(tokens[:, 1:].shape, np.float32),
        "index": np.arange(len(tokens), dtype=np.int32),
    }


def halves(passage: str) -> tuple[str, str]:
    """A prompt and the characters that follow it, half of those predicted."""
    new = (len(passage) - 1) // 2
    return passage[:-new], passage[-new:]


def cued(passage: str) -> tuple[str, str]:
    """A cue out of the middle, and what follows it."""
    start = len(passage) // 4
    return passage[start : start + CUE], passage[start + CUE : start + CUE + ANSWER]
