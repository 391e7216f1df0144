"""The models of a recipe: folders as Hugging Face lays them out, on this machine."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.formats.huggingface import open_folder, read_json
from kd_jax.formats.tensors import LazyTensor
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.recipe import Recipe


class Model(NamedTuple):
    """name: as the recipe has it. config: of config.json, {} where there is none."""

    name: str
    folder: Path
    tensors: dict[str, LazyTensor]
    config: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """The files that its tensors lie in."""
        return sorted({x.place.path for x in self.tensors.values() if x.place})


def open_models(recipe: Recipe, beside: Path) -> dict[str, Model]:
    """Every model that a recipe names, by that name; nothing but headers is read.

    beside: the recipe's folder, in which relative names are looked up, and then in the current one.
    MergeError for a folder that is not there or not sound.
    """
    return {name: _open(name, beside) for name in recipe.models}


def _open(name: str, beside: Path) -> Model:
    given = Path(name).expanduser()
    folder = next((x for x in (beside / given, given) if x.is_dir()), None)
    if folder is None:
        raise MergeError(
            f"{name}: no such folder, neither in {beside} nor here; nothing is downloaded: "
            "give the folder of a model on this machine"
        )
    try:
        config = folder / "config.json"
        return Model(
            name, folder, open_folder(folder), read_json(config) if config.exists() else {}
        )
    except (ValueError, OSError) as error:
        raise MergeError(str(error)) from None


def identity(recipe: Recipe, models: dict[str, Model]) -> str:
    """What decides the result: the recipe, and each input file's name, size and time of change."""
    parts: list[Any] = [recipe.text]
    for model in models.values():
        for file in model.files:
            stat = file.stat()
            parts.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
        parts.append(json.dumps(model.config, sort_keys=True))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
