"""Tiny Shakespeare: 1.1 MB of plays as one text, for language models from scratch."""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from kd_jax.data.builders import files

_FILE = "input.txt"
_ORIGIN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """train, validation and test: one record `text` each, 90, 5 and 5 % of the characters."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW.format(name="tiny_shakespeare")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="40000 lines of Shakespeare's plays.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://github.com/karpathy/char-rnn",
            license="public domain text",
            citation="@misc{karpathy2015charrnn, author={Karpathy, Andrej}, title={char-rnn}, "
            "year={2015}, howpublished={https://github.com/karpathy/char-rnn}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = files.find("tiny_shakespeare", {_FILE: _ORIGIN + _FILE}, dl_manager)[_FILE]
        text = _read(path)
        ends = [len(text) * percent // 100 for percent in (90, 95, 100)]
        return {
            "train": self._generate_examples(text[: ends[0]]),
            "validation": self._generate_examples(text[ends[0] : ends[1]]),
            "test": self._generate_examples(text[ends[1] :]),
        }

    def _generate_examples(self, text: str) -> Iterator[Any]:
        yield 0, {"text": text}


def _read(path: pathlib.Path) -> str:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text
