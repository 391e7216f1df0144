"""Pairs: preferred and rejected answers, and forget rows beside retain rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax.data import arrays as arrays_lib
from kd_jax.data import collate, order, sources


class Pair(NamedTuple):
    """A prompt with a preferred and a rejected answer, as token ids."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]


def collate_pairs(
    pairs: Sequence[Pair], *, length: int, eos_id: int | None, pad_id: int = 0
) -> dict[str, Any]:
    """{"chosen": batch, "rejected": batch}: row i of both is pair i, with the same P and T.

    Arguments and errors as in `collate.collate_qa`; both halves begin with the same prompt.
    """
    halves = {
        "chosen": [collate.Example(p.prompt, p.chosen) for p in pairs],
        "rejected": [collate.Example(p.prompt, p.rejected) for p in pairs],
    }
    return {
        name: collate.collate_qa(half, length=length, eos_id=eos_id, pad_id=pad_id)
        for name, half in halves.items()
    }


def mismatched(examples: Sequence[collate.Example]) -> list[collate.Example]:
    """Each prompt with the answer of the next example, the last one's with the first's: for KTO.

    The examples are those of a batch, two or more: ValueError for a single one.
    """
    if len(examples) < 2:
        raise ValueError(f"examples: got {len(examples)}, takes at least 2")
    answers = [example.answer for example in examples]
    return [
        collate.Example(example.prompt, answer)
        for example, answer in zip(examples, answers[1:] + answers[:1], strict=True)
    ]


def paired(**parts: sources.Source) -> sources.Source:
    """A source of {name: batch of that source} at the same step: paired(forget=..., retain=...)."""

    def batches(step: int, rows: slice) -> dict[str, Any]:
        return {name: source(step, rows) for name, source in parts.items()}

    return batches


def forget_retain(
    forget: Mapping[str, arrays_lib.Arrays],
    retain: Mapping[str, arrays_lib.Arrays],
    *,
    seed: int,
    batch_size: int,
) -> sources.Source:
    """A source of {part: batch}, each of batch_size rows: the parts of forget and those of retain.

    forget: {"forget": rows} and what goes row by row with them ({"refusal": rows} of the same
    questions); retain likewise. The anchor is forget: an epoch is one permutation of its rows, and
    each comes with a retain row drawn uniformly with replacement, as in TOFU (arXiv 2401.06121).
    ValueError where the parts of one side have different numbers of rows.
    """
    sides = {"forget": (forget, order.order), "retain": (retain, order.uniform)}
    for name, (parts, _) in sides.items():
        counts = {part: arrays_lib.size(rows) for part, rows in parts.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{name}: got {counts} rows, takes the same number of each part")
    return paired(
        **{
            # One name for all parts of a side: the same order of rows.
            part: sources.array_batches(
                rows, seed=seed, name=name, batch_size=batch_size, draw=draw
            )
            for name, (parts, draw) in sides.items()
            for part, rows in parts.items()
        }
    )


def split_authors(
    records: Sequence[dict[str, Any]], *, forget: int, retain: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(records of the last `forget` authors, records of the first `retain` others).

    TOFU's split (forget01 is the last 2 of 200 authors) at any size. records have the field
    `author`, an int; retain=None keeps all others.
    """
    authors = sorted({int(record["author"]) for record in records})
    if not 0 < forget < len(authors):
        raise ValueError(f"forget: got {forget} authors, takes 1 to {len(authors) - 1}")
    others = authors[:-forget]
    if retain is not None and not 0 < retain <= len(others):
        raise ValueError(f"retain: got {retain} authors, takes 1 to {len(others)}")
    forgotten, kept = set(authors[-forget:]), set(others[:retain])
    return (
        [record for record in records if record["author"] in forgotten],
        [record for record in records if record["author"] in kept],
    )
