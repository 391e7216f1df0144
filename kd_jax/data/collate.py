"""Collation: token ids -> the text batch {inputs, targets, weights, index}, shifted once, here.

Position t of a row holds inputs[t] and predicts targets[t], the token after it. weights is 1 where
the target counts (the answer and its end-of-sequence token) and 0 on the prompt and on padding.
Targets of weight 0 are legal ids all the same (the prompt's, or pad_id): never -100.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Example(NamedTuple):
    """A prompt and the answer that is learnt, as token ids, without the end-of-sequence token."""

    prompt: Sequence[int]
    answer: Sequence[int]


def fitting_length(examples: Iterable[Example], *, eos: bool = True, multiple: int = 1) -> int:
    """The smallest T, a multiple of `multiple`, at which `collate_qa` cuts no example."""
    longest = max((len(e.prompt) + len(e.answer) for e in examples), default=0) - 1 + eos
    return -(-max(longest, 1) // multiple) * multiple


def is_cut(examples: Iterable[Example], *, length: int, eos: bool = True) -> np.ndarray:
    """bool[B]: which examples `collate_qa` cuts at this length; its sum is their number."""
    return np.array([len(e.prompt) + len(e.answer) - 1 + eos > length for e in examples], bool)


def cut_prompt(example: Example, *, length: int, eos: bool = True) -> Example:
    """The example with the start of its prompt dropped, so that T = length holds the rest.

    For long contexts whose end matters. The answer is never cut: ValueError where it leaves no
    room for one token of the prompt.
    """
    room = length - len(example.answer) + 1 - eos
    if room < 1:
        raise ValueError(
            f"length: got {length}, takes at least {len(example.answer) + eos} for an answer of "
            f"{len(example.answer)} tokens"
        )
    return Example(example.prompt[-room:], example.answer)


def collate_qa(
    examples: Sequence[Example], *, length: int, eos_id: int | None, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """Rows of prompt + answer + EOS: inputs, targets i32[B, T], weights f32[B, T], index i32[B].

    length: T, the number of predictions in a row; the sequence may have T + 1 tokens.
    eos_id: appended to every answer and labelled, unless the row is cut; None appends nothing.
    pad_id: fills the rest of inputs and targets; 0 to V - 1.
    A longer sequence loses its end (the answer's, and the EOS), as in TOFU; `is_cut` counts such
    rows, `cut_prompt` cuts the other side. index is the example's number.
    ValueError: an empty prompt (nothing would predict the first token of the answer: give the
    beginning-of-sequence token), an empty answer without EOS, a prompt that leaves no room for
    the answer, a negative id.
    """
    check_ids(length, eos_id, pad_id)
    inputs = np.full((len(examples), length), pad_id, np.int32)
    targets = np.full((len(examples), length), pad_id, np.int32)
    weights = np.zeros((len(examples), length), np.float32)
    for i, example in enumerate(examples):
        tokens, first = shifted(example, i, length=length, eos_id=eos_id)
        n = len(tokens) - 1
        inputs[i, :n] = tokens[:-1]
        targets[i, :n] = tokens[1:]
        weights[i, first:n] = 1
    return {
        "inputs": inputs,
        "targets": targets,
        "weights": weights,
        "index": np.arange(len(examples), dtype=np.int32),
    }


def shifted(
    example: Example, number: int, *, length: int, eos_id: int | None
) -> tuple[np.ndarray, int]:
    """(at most length + 1 tokens, the position that predicts the first token of the answer).

    The one place where prompt, answer, EOS and cutting meet; `number` is named in errors.
    """
    tokens = [*example.prompt, *example.answer, *([] if eos_id is None else [eos_id])]
    first = len(example.prompt) - 1
    if first < 0:
        raise ValueError(
            f"examples: number {number} has an empty prompt, takes one token at least (the "
            "beginning-of-sequence token, say)"
        )
    if len(tokens) == first + 1:
        raise ValueError(f"examples: number {number} has an empty answer and no EOS to learn")
    if first >= length:
        raise ValueError(
            f"length: got {length}, takes at least {first + 1} for the prompt of example {number}: "
            "nothing of its answer is left"
        )
    ids = np.asarray(tokens[: length + 1], np.int64)
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(f"examples: number {number} has the id {ids.min()}, takes ids from 0")
    return ids, first


def collate_text(
    documents: Iterable[Sequence[int]], *, length: int, eos_id: int | None, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """Contiguous rows of a stream of documents, for language modelling: a text batch.

    The documents are joined, each followed by eos_id unless that is None; row i predicts tokens
    i * T + 1 to (i + 1) * T of the stream, so every token but the first is a target once. Only
    the last row is padded. Rows cross document boundaries; `packing.pack` keeps them apart.
    """
    check_ids(length, eos_id, pad_id)
    end = [] if eos_id is None else [eos_id]
    parts = [np.asarray([*document, *end], np.int64) for document in documents]
    stream = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if len(stream) < 2:
        raise ValueError(f"documents: got {len(stream)} tokens in all, takes at least 2")
    if stream.min() < 0:
        raise ValueError(f"documents: got the id {stream.min()}, takes ids from 0")
    rows = -(-(len(stream) - 1) // length)

    def lay(values: Any, fill: int, dtype: Any) -> np.ndarray:
        flat = np.full(rows * length, fill, dtype)
        flat[: len(values)] = values
        return flat.reshape(rows, length)

    return {
        "inputs": lay(stream[:-1], pad_id, np.int32),
        "targets": lay(stream[1:], pad_id, np.int32),
        "weights": lay(np.ones(len(stream) - 1), 0, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def check_ids(length: int, eos_id: int | None, pad_id: int) -> None:
    """ValueError where a row's length or a special id is out of range."""
    if length < 1:
        raise ValueError(f"length: got {length}, takes at least 1")
    if pad_id < 0 or (eos_id is not None and eos_id < 0):
        raise ValueError(f"pad_id, eos_id: got {pad_id}, {eos_id}, takes ids from 0")
