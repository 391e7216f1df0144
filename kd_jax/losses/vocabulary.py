"""Heads over a part of their vocabulary.

Models pad their heads to a multiple of 64 or more, one to 49152 rows and another to 49280, for the
same tokens. A padded row is no token, and belongs in no softmax: not the student's, where it would
take probability that nothing can draw, and not the teacher's. So it is cut off before the logits
are made. A vocabulary sharded over devices may be cut anywhere.
"""

from collections.abc import Mapping

import numpy as np

from kd_jax.losses._pieces import extent
from kd_jax.types import Head, Logits


def first(head: Head, size: int) -> Head:
    """The head of the first `size` tokens: logits [..., size]. The gradient of the others is 0.

    ValueError where the head has fewer.
    """
    rows = extent(head)[-1]
    if not 1 <= size <= rows:
        raise ValueError(f"vocabulary: got {size}, takes 1 to {rows}, the rows of the head")
    if size == rows:
        return head
    if isinstance(head, Logits):
        return Logits(head.z[..., :size])
    return head._replace(unembedding=head.unembedding[:size])


def chosen(head: Head, tokens: np.ndarray) -> Head:
    """The head of some tokens alone, in their order: logits [..., K].

    tokens: int [K], ids in [0, V), each once. A softmax over it is the head's, given that the next
    token is one of these. ValueError for an id that the head does not have.
    """
    rows = extent(head)[-1]
    wrong = tokens[(tokens < 0) | (tokens >= rows)]
    if wrong.size:
        raise ValueError(f"tokens: got {wrong[0]}, takes 0 to {rows - 1}, the rows of the head")
    if isinstance(head, Logits):
        return Logits(head.z[..., tokens])
    return head._replace(unembedding=head.unembedding[tokens])


def common(heads: Mapping[str, Head], size: int | None) -> list[Head]:
    """The heads over the tokens that all of them have: the first `size`.

    size: how many tokens the tokeniser has, or None where all heads are as large. ValueError, with
    the names and sizes of the heads, where they are not; and as in `first`.
    """
    rows = {name: extent(head)[-1] for name, head in heads.items()}
    if size is None and len(set(rows.values())) > 1:
        sizes = ", ".join(f"{name} {n}" for name, n in rows.items())
        raise ValueError(
            f"vocabulary: got none for heads of different sizes ({sizes}); give vocabulary=, the "
            "number of tokens that they share: of one tokeniser, its size"
        )
    return [head if size is None else first(head, size) for head in heads.values()]
