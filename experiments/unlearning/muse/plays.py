"""Passages of plays as rows of tokens: what is forgotten, kept and held out."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import prepare
from kd_jax.data.builders.authors_generator import generate
from kd_jax.data.builders.tiny_shakespeare import TinyShakespeare
from kd_jax.launch.config import check_positive, not_identity

# How the two plays begin, and what follows each in the file.
FORGOTTEN = ("SAMPSON:\nGregory, o' my word", "WARWICK:\nI wonder how the king")  # Romeo and Juliet
KEPT = ("First Citizen:\nBefore we proceed", "GLOUCESTER:\nNow is the winter")  # Coriolanus

CHARACTERS = ("\n", *map(chr, range(32, 127)))  # ASCII
_PIECE = re.compile(r" ?\w+|\W")


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
    length: int = 96
    """Tokens that a passage has to predict: common words, the characters of others."""
    vocabulary: int = 512
    """Entries of the model's vocabulary: characters and the commonest words."""
    folder: str | None = not_identity(None)
    """Where the data set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        check_positive(self, "requests", "forget", "retain")
        if self.vocabulary < len(CHARACTERS):
            raise ValueError(
                f"data.vocabulary: got {self.vocabulary}, takes at least {len(CHARACTERS)}"
            )
        if self.length < 4:
            raise ValueError(f"data.length: got {self.length}, takes at least 4")

    @property
    def total(self) -> int:
        """Passages to forget."""
        return self.requests * self.forget


class Pieces(NamedTuple):
    """Words with the space before them, and the characters of words that are not among them.

    A model of few words has seen all of its tokens in training, so that a text held out is not told
    apart by the mere words in it. Without loss but for characters outside ASCII, which become "?".
    """

    tokens: tuple[str, ...]

    @classmethod
    def from_texts(cls, texts: Iterable[str], size: int) -> "Pieces":
        """`CHARACTERS`, then the commonest words of the texts, up to `size` tokens in all."""
        counts = collections.Counter(piece for text in texts for piece in _PIECE.findall(text))
        found = sorted(counts, key=lambda piece: (-counts[piece], piece))
        words = [piece for piece in found if len(piece) > 1]
        return cls((*CHARACTERS, *words[: size - len(CHARACTERS)]))

    def encode(self, text: str) -> list[int]:
        ids = {token: i for i, token in enumerate(self.tokens)}
        unknown = ids["?"]
        found: list[int] = []
        for piece in _PIECE.findall(text):
            found += [ids[piece]] if piece in ids else [ids.get(c, unknown) for c in piece]
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        """Of tokens that the model has and the vocabulary has not, "?"."""
        return "".join(self.tokens[i] if i < len(self.tokens) else "?" for i in tokens)


class Passages(NamedTuple):
    """Passages of length + 1 tokens; those to forget in the order of requests."""

    pieces: Pieces
    forget: list[list[int]]
    holdout: list[list[int]]
    retain: list[list[int]]


@functools.cache
def load(data: Data) -> Passages:
    """The passages. Those to forget and those held out take turns in one play, so that only
    training tells them apart."""
    plays = _plays(data) if data.shakespeare else _generated(data)
    pieces = Pieces.from_texts(plays, data.vocabulary)
    counts = {"forget": 2 * data.total, "retain": data.retain}
    first, kept = (
        _cut(name, pieces.encode(play), count, data.length + 1)
        for (name, count), play in zip(counts.items(), plays, strict=True)
    )
    return Passages(pieces, first[::2], first[1::2], kept)


def _cut(name: str, tokens: list[int], count: int, size: int) -> list[list[int]]:
    if len(tokens) < count * size:
        raise ValueError(
            f"data.{name}: takes {count} passages of {size} tokens, the text has {len(tokens)}"
        )
    return [tokens[i * size : (i + 1) * size] for i in range(count)]


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


def halves(passage: list[int]) -> tuple[list[int], list[int]]:
    """A prompt and the tokens that follow it, half of those predicted."""
    new = (len(passage) - 1) // 2
    return passage[:-new], passage[-new:]
