"""Whether models can share a tokeniser: row v of an embedding must be the same token in all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.formats.huggingface import read_json
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.inputs import Model
from kd_jax.merging.disk.recipe import Recipe

_FILE = "tokenizer.json"


def check_tokenizers(recipe: Recipe, models: Mapping[str, Model]) -> None:
    """With tokenizer_source: base, MergeError for a model whose tokens are not the base's."""
    if recipe.tokenizer_source is None:
        return
    if recipe.base is None:
        raise MergeError("tokenizer_source: base needs a base_model")
    base = models[recipe.base].folder / _FILE
    for model in models.values():
        path = model.folder / _FILE
        if not path.is_file() or not base.is_file():
            missing = base if not base.is_file() else path
            raise MergeError(f"tokenizer_source: {missing} is missing")
        if path.read_bytes() != base.read_bytes() and _tokens(path) != _tokens(base):
            raise MergeError(
                f"tokenizer_source: {model.name} has other tokens than {recipe.base}; embeddings "
                "are not permuted here: take models of one vocabulary"
            )


def _tokens(path: Path) -> Any:
    try:
        given = read_json(path)
    except ValueError as error:
        raise MergeError(str(error)) from None
    vocabulary = given.get("model", {}).get("vocab")
    added = [[token.get("id"), token.get("content")] for token in given.get("added_tokens") or []]
    return json.dumps([vocabulary, added], sort_keys=True)
