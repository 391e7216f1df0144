"""A word-level tokeniser made from texts: a small vocabulary for language models from scratch."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Self

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\w+|[^\w]+")


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """Words and the runs of other characters between them, without loss.

    A single space between two words is not a token of its own: "born in Ada.\\n" is
    [born, in, Ada, ".\\n"]. So decode(encode(text)) == text for texts of known tokens; a token not
    in the vocabulary becomes <unk>. Where two encoded texts are joined, word to word, `decode` puts
    a space between.

    It stands wherever `kd_jax.formats.tokenizer.Tokenizer` does, but for chats.

    tokens: the vocabulary by id, SPECIAL first. Ids depend on the texts alone.
    """

    tokens: tuple[str, ...]

    pad_id = 0
    bos_id = 1
    eos_id = 2
    unk_id = 3

    def __post_init__(self) -> None:
        if self.tokens[: len(SPECIAL)] != SPECIAL or len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"tokens: takes distinct tokens that begin with {SPECIAL}")

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, max_size: int | None = None) -> Self:
        """The vocabulary of the texts, commonest first and then in the order of characters.

        max_size: the largest vocab_size; rarer tokens are left out.
        """
        counts = collections.Counter(token for text in texts for token in _split(text))
        for special in SPECIAL:
            counts.pop(special, None)
        found = sorted(counts, key=lambda token: (-counts[token], token))
        if max_size is not None and max_size <= len(SPECIAL):
            raise ValueError(f"max_size: got {max_size}, takes more than {len(SPECIAL)}")
        return cls((SPECIAL + tuple(found))[:max_size])

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special token is added, or read out of the text."""
        return [self._ids.get(token, self.unk_id) for token in _split(text)]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; skip_special leaves out <pad>, <bos> and <eos>.

        ValueError: an id that is negative or not below vocab_size.
        """
        text, after_word = [], False
        for i in ids:
            i = int(i)
            if not 0 <= i < len(self.tokens):
                raise ValueError(f"ids: got {i}, takes 0 to {len(self.tokens) - 1}")
            if i < self.unk_id and skip_special:
                continue
            word = i == self.unk_id or _WORD.fullmatch(self.tokens[i]) is not None
            text.append(f" {self.tokens[i]}" if word and after_word else self.tokens[i])
            after_word = word
        return "".join(text)


def _split(text: str) -> list[str]:
    pieces = _PIECE.findall(text)
    inner = range(1, len(pieces) - 1)  # a space at either end of a text has no word beside it
    return [p for i, p in enumerate(pieces) if not (p == " " and i in inner)]
