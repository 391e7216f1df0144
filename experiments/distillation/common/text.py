"""Characters of a text as rows of tokens, for language models from scratch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import prepare
from kd_jax.data.builders.authors_generator import generate
from kd_jax.data.builders.tiny_shakespeare import TinyShakespeare
from kd_jax.launch.config import check_positive, not_identity

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # ASCII: 96, also before a text is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Tiny Shakespeare, or generated sentences about authors."""

    shakespeare: bool = False
    """Tiny Shakespeare instead of generated text."""
    length: int = 64
    """Tokens, mostly characters, that a row has to predict."""
    held_out: int = 256
    """Rows to measure on; from parts of the text that are never trained on."""
    folder: str | None = not_identity(None)
    """Where the data set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        check_positive(self, "length", "held_out")


class Corpus(NamedTuple):
    """Rows of length + 1 tokens, int32 [N, length + 1]."""

    train: np.ndarray
    held_out: np.ndarray


@functools.cache
def load(text: Text) -> Corpus:
    """Consecutive pieces of the text; of those held out, evenly many from all of its end."""
    return corpus(text, characters)


def corpus(text: Text, encode: Callable[[str], Sequence[int]]) -> Corpus:
    """`load` in other tokens than characters."""
    return pieces(text, *map(encode, read(text)))


@functools.cache
def read(text: Text) -> tuple[str, str]:
    """(what is trained on, what rows are held out from)."""
    if text.shakespeare:
        splits = prepare.load(TinyShakespeare, manual_dir=text.folder)
        train, rest = (prepare.texts(splits[name])[0]["text"] for name in ("train", "validation"))
        return train, rest
    answers = [record["answer"] for record in generate(60)]
    return "\n".join(answers[:800]), "\n".join(answers[800:])


def pieces(text: Text, train: Sequence[int], rest: Sequence[int]) -> Corpus:
    """Rows of two sequences of tokens, of the size and number that the text has."""
    trained, held_out = (cut(part, text.length + 1) for part in (train, rest))
    if len(held_out) < text.held_out:
        raise ValueError(
            f"text.held_out: got {text.held_out}, the text has {len(held_out)} rows of "
            f"{text.length}"
        )
    chosen = np.linspace(0, len(held_out) - 1, text.held_out).astype(int)
    return Corpus(trained, held_out[chosen])


def rows(tokens: np.ndarray, *, given: int = 0) -> dict[str, Any]:
    """A text batch of tokens [N, T + 1]; the first `given` of each are a prompt, not predicted."""
    weights = np.ones((len(tokens), tokens.shape[1] - 1), np.float32)
    weights[:, : max(0, given - 1)] = 0.0
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": weights,
        "index": np.arange(len(tokens), dtype=np.int32),
    }


def characters(text: str) -> list[int]:
    """Characters outside ASCII are "?"."""
    codes = {character: i for i, character in enumerate(CHARACTERS)}
    return [codes.get(c, codes["?"]) for c in text]


def cut(tokens: Sequence[int], size: int) -> np.ndarray:
    """Int32 [N, size]; what is left at the end is dropped."""
    whole = np.array(tokens[: len(tokens) // size * size], np.int32)
    return whole.reshape(-1, size)
