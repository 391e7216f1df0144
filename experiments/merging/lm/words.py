"""Words written backwards, "romeo,oemor", one a line: a task for a small language model."""

import functools
import re
from typing import Any, Literal

import numpy as np

from experiments.distillation.common import text as text_lib
from experiments.distillation.common.text import Text, characters

Split = Literal["train", "validation", "test"]
SHORTEST, LONGEST = 3, 5  # letters of a word
_LINE = 2 * LONGEST + 2


@functools.cache
def words(text: Text, split: Split) -> tuple[str, ...]:
    """The short words of the text; a tenth of them is for validation, a tenth for the test."""
    pattern = rf"\b[a-z]{{{SHORTEST},{LONGEST}}}\b"
    found = sorted(set(re.findall(pattern, text_lib.read(text)[0])))
    mixed = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    cut = len(mixed) // 10
    parts = {"test": mixed[:cut], "validation": mixed[cut : 2 * cut], "train": mixed[2 * cut :]}
    return tuple(parts[split])


def line(word: str) -> str:
    return f"{word},{word[::-1]}\n"


@functools.cache
def task(text: Text, count: int) -> np.ndarray:
    """Tokens [count, text.length + 1] of consecutive lines of the training words."""
    known, need = words(text, "train"), count * (text.length + 1)
    drawn = np.random.default_rng(1).integers(0, len(known), need // (2 * SHORTEST + 2) + 1)
    tokens = characters("".join(line(known[i]) for i in drawn))
    return np.array(tokens[:need], np.int32).reshape(count, -1)


@functools.cache
def questions(text: Text, split: Split, count: int) -> dict[str, Any]:
    """A text batch: whole lines of training words, then one of the split, whose answer is weighed.

    The lines before it tell the language. The end of the line is weighed last, as the end of an
    answer; what follows is padding. The same rows every time.
    """
    if text.length + 1 < _LINE:
        raise ValueError(f"text.length: got {text.length}, takes at least {_LINE - 1}")
    rng, known, asked = np.random.default_rng(2), words(text, "train"), words(text, split)
    tokens = np.zeros((count, text.length + 1), np.int32)
    weights = np.zeros((count, text.length), np.float32)
    for i in range(count):
        last = row = line(asked[i % len(asked)])
        while len(longer := line(known[rng.integers(len(known))]) + row) <= text.length + 1:
            row = longer
        tokens[i, : len(row)] = characters(row)
        answer = len(last) // 2
        weights[i, len(row) - 1 - answer : len(row) - 1] = 1.0
    index = np.arange(count, dtype=np.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights, "index": index}
