"""What stands beside the weights: config, tokeniser, and a README of where they come from."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax import __version__
from kd_jax.formats.huggingface import INDEX
from kd_jax.merging.disk.inputs import Model
from kd_jax.merging.disk.plan import Plan
from kd_jax.merging.disk.recipe import Recipe
from kd_jax.merging.disk.shards import Shard, index

_CHUNK = 1 << 20
# Beside these, files whose names start with "tokenizer".
_CARRIED = {
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "preprocessor_config.json"),
}


def sha256(path: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """Of a file's bytes, as `sha256sum` has it. progress: is told how many were read."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            progress(count)
    return digest.hexdigest()


def write_rest(
    folder: Path,
    recipe: Recipe,
    plan: Plan,
    models: Mapping[str, Model],
    shards: Sequence[Shard],
    hashes: Mapping[Path, str],
) -> None:
    """config.json, the index, the tokeniser's files, README.md and the recipe."""
    config = {**plan.donor.config, **plan.changes}
    if recipe.dtype:
        config["dtype" if "dtype" in config else "torch_dtype"] = recipe.dtype
    _write_json(folder / "config.json", config)
    if places := index(shards):
        _write_json(folder / INDEX, places)
    for path in sorted(plan.donor.folder.iterdir()):
        if path.is_file() and (path.name in _CARRIED or path.name.startswith("tokenizer")):
            shutil.copyfile(path, folder / path.name)
    (folder / "merge_recipe.yaml").write_text(recipe.text, encoding="utf-8")
    text = model_card(recipe, plan, models, hashes)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_card(
    recipe: Recipe, plan: Plan, models: Mapping[str, Model], hashes: Mapping[Path, str]
) -> str:
    """The text of README.md. hashes: SHA-256 of input files, {} to leave them out."""
    named = "\n".join(f"- {json.dumps(name)}" for name in models)
    lines = [
        f"---\nlibrary_name: transformers\nbase_model:\n{named}\ntags:\n- merge\n- kd_jax\n---\n",
        "# A merge of models\n",
        f"Merged by `{recipe.method}` with kd_jax {__version__} (NumPy {np.__version__}, Python "
        f"{platform.python_version()}). Arithmetic in float32.\n",
        "## Inputs\n",
        "| model | file | bytes | SHA-256 |",
        "| --- | --- | --- | --- |",
    ]
    for name, model in models.items():
        base = " (base)" if name == recipe.base else ""
        for path in model.files:
            found = hashes.get(path, "not taken")
            lines.append(f"| {name}{base} | {path.name} | {path.stat().st_size} | {found} |")
    lines.append(f"\nConfiguration and tokeniser are those of {plan.donor.name}.")
    lines += [f"\n{key} is {value} here." for key, value in plan.changes.items()]
    if plan.notes:
        lines += ["\n## Notes\n", *(f"- {note}" for note in plan.notes)]
    fence = "```"
    while fence in recipe.text:
        fence += "`"
    lines += ["\n## Recipe\n", f"{fence}yaml", recipe.text.rstrip("\n"), fence]
    return "\n".join(lines) + "\n"
