"""A second language: each character of a text or a task replaced by another one, always the same.

A cipher is int32 [characters]: character i is written as cipher[i].
"""

from typing import Any

import numpy as np

from experiments.distillation.common.text import CHARACTERS, characters

# In an alphabet of its own after the first one, and with large letters for small ones.
OTHER_ALPHABET = np.arange(len(CHARACTERS), 2 * len(CHARACTERS), dtype=np.int32)
OTHER_CASE = np.array(characters(CHARACTERS.swapcase()), np.int32)


def enciphered(batch: dict[str, Any], cipher: np.ndarray) -> dict[str, Any]:
    """A text batch in the second language."""
    return batch | {name: cipher[batch[name]] for name in ("inputs", "targets")}
