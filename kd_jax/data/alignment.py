"""Two tokenisations of the same text: at which positions of each have the same bytes been read?

There both models predict what comes next from the same prefix, and can be compared. Places are
counted in bytes of UTF-8, in which every tokeniser's tokens end somewhere; in characters they do
not, as several byte-level tokens may make one character.

    ids, ends = encode(tokenizer, answer)                    # and so with the teacher's
    batch = collate_qa([Example(prompt, ids), ...], ...)     # and batch["teacher"]
    read = [bytes_read(len(prompt), ends), ...]
    batch["pairs"] = pairs_by_bytes(read, teacher's, batch["weights"], teacher's weights)

The same prefix in other tokens is not quite the same condition: that a token ends here tells a
model that the text does not go on as a longer token would.
"""

from collections.abc import Sequence

import numpy as np

from kd_jax.formats.tokenizer import Tokenizer

UNKNOWN = -1


def encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], np.ndarray]:
    """(the ids of a text, without added special tokens; the byte of the text each ends at)."""
    found = tokenizer.backend.encode(text, add_special_tokens=False)
    return found.ids, byte_ends(text, found.tokens, found.offsets)


def byte_ends(text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """int64 [N]: how many bytes of the text have been read after each token, or UNKNOWN.

    tokens, offsets: of an encoding of the `tokenizers` library, strings and (start, end) in
        characters of the text. A token of no width, as a special one at (0, 0), ends where the one
        before it does.

    Tokens that share characters have the same offsets. Their ends are told from their strings,
    which have a letter for a byte in byte-level vocabularies and are written <0x0A> where others
    fall back to bytes; UNKNOWN where that does not add up to the characters' bytes, as after a
    normalisation. The last of them ends with the characters in any case. Also UNKNOWN before
    characters other than spaces that are in no token: an accent that a normalisation has put into
    the letter may have been read.
    """
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    reach, wide = np.maximum.accumulate(ends), ends > starts
    bytes_before = np.cumsum([0, *(len(character.encode()) for character in text)])
    found = bytes_before[reach]
    spelt = np.where(wide, np.array([_bytes(token) for token in tokens], np.int64), 0)
    # Where a later token begins inside it, a token has not finished its last character.
    onward = np.append(np.where(wide, starts, len(text)), len(text))
    nearest = np.minimum.accumulate(onward[::-1])[::-1][1:]
    skipped = [bool(text[a:b].strip()) for a, b in zip(reach, nearest, strict=True)]
    for run in np.split(np.arange(len(found)), np.flatnonzero(nearest >= reach) + 1):
        if len(run) > 1:
            before = found[run[0] - 1] if run[0] else 0
            exact = before + np.cumsum(spelt[run])
            found[run[:-1]] = exact[:-1] if exact[-1] == found[run[-1]] else UNKNOWN
    found[skipped] = UNKNOWN
    return found


def bytes_read(prompt: int, ends: np.ndarray) -> np.ndarray:
    """int64 [prompt + N]: bytes of the answer read at each position of prompt + answer.

    prompt: its number of tokens; ends: of the answer's tokens. 0 at the prompt's last position and
    UNKNOWN before: two models' prompts may be different texts (chat templates, a
    beginning-of-sequence token), and nothing is compared inside them.
    """
    if prompt < 1:
        raise ValueError(f"prompt: got {prompt} tokens, takes at least 1")
    return np.concatenate([np.full(prompt - 1, UNKNOWN), [0], ends]).astype(np.int64)


def pairs_by_bytes(
    student: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    weights: np.ndarray,
    teacher_weights: np.ndarray,
    *,
    size: int | None = None,
) -> dict[str, np.ndarray]:
    """The positions of each row at which student and teacher have read the same bytes.

    student, teacher: B arrays of `bytes_read`, as long as the rows' tokens, uncut.
    weights [B, T], teacher_weights [B, T']: of the text batches; only positions that both weigh
        are paired: whose prediction counts, and that are not cut off.
    size: P, or None for the smaller of T and T', which all pairs fit in; of more the last are lost.

    Returns {"student", "teacher": i32 [B, P], positions in order, 0 behind the last; "weights":
    f32 [B, P], 1 for a pair and 0 behind}. Of several positions with the same bytes (a token of no
    width) the last is taken, when all has been read.
    """
    _check_rows(student, teacher, weights, teacher_weights)
    found = [_matches(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    return _padded(found, weights, teacher_weights, size)


def pairs_in_order(
    weights: np.ndarray, teacher_weights: np.ndarray, *, size: int | None = None
) -> dict[str, np.ndarray]:
    """The k-th weighed position of the student with the k-th of the teacher, as long as both last.

    Arguments and result as `pairs_by_bytes`. It is what the released code of universal logit
    distillation (arXiv 2402.12030) compares, whatever text each has read by then; the ends of the
    longer answers are left out. That code averages over each sequence and then over sequences,
    where an objective's mean here is over all pairs.
    """
    _check_rows(weights, teacher_weights)
    found = []
    for ours, theirs in zip(weights, teacher_weights, strict=True):
        i, j = np.flatnonzero(ours), np.flatnonzero(theirs)
        both = min(len(i), len(j))
        found.append((i[:both], j[:both]))
    return _padded(found, weights, teacher_weights, size)


def shared_tokens(student: Tokenizer, teacher: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(student's ids, teacher's ids) int32 [K] of the tokens that are the same string in both.

    In the order of the student's ids. Strings are compared as the vocabularies write them: a space
    is another letter in a byte-level one than elsewhere, and such tokens are then not shared.
    """
    ours, theirs = (t.backend.get_vocab(with_added_tokens=True) for t in (student, teacher))
    both = sorted(ours.keys() & theirs.keys(), key=lambda token: ours[token])
    first, second = (np.array([of[token] for token in both], np.int32) for of in (ours, theirs))
    return first, second


def _bytes(token: str) -> int:
    return 1 if len(token) == 6 and token.startswith("<0x") else len(token)


def _check_rows(*sides: Sequence[np.ndarray] | np.ndarray) -> None:
    if len({len(side) for side in sides}) > 1:
        said = ", ".join(str(len(side)) for side in sides)
        raise ValueError(f"student, teacher: got {said} rows, takes as many everywhere")


def _matches(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (of_ours, i), (of_theirs, j) = _last_places(ours), _last_places(theirs)
    _, first, second = np.intersect1d(of_ours, of_theirs, assume_unique=True, return_indices=True)
    return i[first], j[second]


def _last_places(read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of bytes, ascending; the last position at which so many have been read)."""
    known = np.flatnonzero(np.asarray(read) != UNKNOWN)[::-1]
    values, first = np.unique(np.asarray(read)[known], return_index=True)
    return values, known[first]


def _padded(
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    teacher_weights: np.ndarray,
    size: int | None,
) -> dict[str, np.ndarray]:
    size = int(min(weights.shape[1], teacher_weights.shape[1])) if size is None else size
    if size < 1:
        raise ValueError(f"size: got {size}, takes at least 1")
    places = np.zeros((2, len(found), size), np.int32)
    weighed = np.zeros((len(found), size), np.float32)
    for row, (i, j) in enumerate(found):
        inside = (i < weights.shape[1]) & (j < teacher_weights.shape[1])
        i, j = i[inside], j[inside]
        counts = (weights[row, i] > 0) & (teacher_weights[row, j] > 0)
        i, j = i[counts][:size], j[counts][:size]
        places[0, row, : len(i)], places[1, row, : len(j)] = i, j
        weighed[row, : len(i)] = 1
    return {"student": places[0], "teacher": places[1], "weights": weighed}
