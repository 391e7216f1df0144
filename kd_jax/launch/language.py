"""The language model that an experiment starts from: one in files, opened by the user's path."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kd_jax.formats import fetch
from kd_jax.launch.errors import UserError
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder, pretrained
from kd_jax.models.config import DecoderConfig
from kd_jax.types import Model


class Language(NamedTuple):
    """An architecture with its initial weights; tokenizer() may read files."""

    config: DecoderConfig
    model: Model
    tokenizer: Callable[[], Any]
    weights: Weights
    max_length: int = 2048


def open_language(path: str, like: DecoderConfig) -> Language:
    """The pretrained model of a Hugging Face folder or a GGUF file.

    path: "smollm2" stands for the model that `kd_jax.formats.fetch smollm2` fetches. Of a model
        whose files are not there the shapes are those of `like`: enough for a plan.
    like: dtype and remat are taken from it.
    """
    file = fetch.smollm2_path() if path == "smollm2" else Path(path)
    if not file.exists():
        model = decoder.decoder(like)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        absent = functools.partial(_absent, path)
        return Language(like, model, absent, Weights(shapes, absent))
    found = pretrained.open_pretrained(file, dtype=like.dtype, remat=like.remat)
    return Language(
        found.config,
        decoder.decoder(found.config),
        functools.cache(found.tokenizer),
        Weights(found.abstract, found.make),
        found.max_length,
    )


def _absent(path: str, *_: Any) -> Any:
    how = (
        "run `python -m kd_jax.formats.fetch smollm2`"
        if path == "smollm2"
        else "give --model a Hugging Face folder or a GGUF file"
    )
    raise UserError(f"model: there is no {path}; {how}")
