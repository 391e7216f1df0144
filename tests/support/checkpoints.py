"""Small checkpoints on disk, and what a recipe makes of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from kd_jax.formats.huggingface import open_folder, write_folder
from kd_jax.formats.tensors import from_array
from kd_jax.merging.disk.run import merge

ROOT = Path(__file__).parents[2]


def write_model(folder, arrays, config=None, **options):
    """A folder with these arrays; folder's own name is what recipes beside it call it."""
    tensors = [from_array(name, np.asarray(x)) for name, x in arrays.items()]
    tensors.sort(key=lambda tensor: -tensor.dtype.itemsize)
    write_folder(folder, tensors, {} if config is None else config, **options)


def read_model(folder):
    """{name: array} of a folder."""
    return {name: np.array(x.read(...)) for name, x in open_folder(folder).items()}


def write_recipe(path, recipe):
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    return path


def merged(folder, recipe, out="out", **options):
    """What the recipe (text or dict), lying in `folder`, gives: {name: array}."""
    merge(write_recipe(folder / "recipe.yaml", recipe), folder / out, **options)
    return read_model(folder / out)


def of_models(method, names, base=None, parameters=None, **keys):
    """A recipe with a dict of parameters for each model name, {} for none."""
    recipe = {"merge_method": method, **keys}
    recipe["models"] = [
        {"model": name, **({"parameters": given} if given else {})} for name, given in names.items()
    ]
    if base:
        recipe["base_model"] = base
    if parameters:
        recipe["parameters"] = parameters
    return recipe


def command(*arguments, **options):
    """A finished `python -m kd_jax.merging`."""
    line = [sys.executable, "-m", "kd_jax.merging", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        line, capture_output=True, text=True, timeout=120, env=environment, **options
    )
