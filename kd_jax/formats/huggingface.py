"""Folders as Hugging Face lays them out: config.json, safetensors (sharded or not), tokeniser."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kd_jax.formats.safetensors import open_tensors, write_tensors
from kd_jax.formats.tensors import LazyTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 200_000_000


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError when it is missing, too large or anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: over {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def open_folder(folder: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a folder by name, none of them read yet.

    It holds model.safetensors, or an index with its shards. ValueError, naming the fault, when a
    file is missing or malformed, when the index names a file that is not directly in the folder
    (links are followed: hub caches are made of them), and when a tensor is in the index and not
    in its shard, or in a shard and not in the index. Pickled weights are never read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    if (folder / INDEX).is_file():
        return _open_sharded(folder)
    if (folder / SINGLE).is_file():
        return open_tensors(folder / SINGLE)
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise ValueError(f"{folder}: has only pickled weights ({pickled[0]}), which are not read")
    raise ValueError(f"{folder}: has neither {SINGLE} nor {INDEX}")


def _open_sharded(folder: Path) -> dict[str, LazyTensor]:
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: has no weight_map")
    for name, place in places.items():
        if not _is_plain_name(place) or not place.endswith(".safetensors"):
            raise ValueError(
                f"{index}: puts {name!r} into {place!r}, takes a safetensors file in its folder"
            )
    tensors: dict[str, LazyTensor] = {}
    for place in sorted(set(places.values())):
        if not (folder / place).is_file():
            raise ValueError(f"{folder}: shard {place} is missing")
        for name, tensor in open_tensors(folder / place).items():
            if places.get(name) != place:
                raise ValueError(f"{folder / place}: {name!r} is not there by the index")
            tensors[name] = tensor
    missing = [name for name in places if name not in tensors]
    if missing:
        raise ValueError(f"{folder}: {places[missing[0]]} lacks {missing[0]!r}, named by the index")
    return tensors


def _is_plain_name(place: Any) -> bool:
    """Whether this names a file directly in a folder, on any system."""
    return (
        isinstance(place, str)
        and "\0" not in place
        and place not in ("", ".", "..")
        and PurePosixPath(place).name == place
        and PureWindowsPath(place).name == place
    )


def write_folder(
    folder: str | Path,
    tensors: Sequence[LazyTensor],
    config: Mapping[str, Any],
    *,
    write_rest: Callable[[Path], None] = lambda folder: None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json and the tensors, one read at a time and in this order.

    Shards hold at most max_shard_bytes, or one tensor that is larger; a single shard is written
    as model.safetensors without an index. write_rest(folder) adds what else belongs there, a
    tokeniser's `save` for one. All of it is written beside `folder` and renamed at the end, so
    that the folder appears whole or not at all.

    ValueError: the folder exists and is not empty; max_shard_bytes is not positive; tensors that
    `write_tensors` refuses.
    """
    folder = Path(folder)
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes: got {max_shard_bytes}, takes a positive number")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder: {folder} exists and is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        _write_json(part / "config.json", config)
        _write_shards(part, _shards(tensors, max_shard_bytes))
        write_rest(part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _shards(tensors: Sequence[LazyTensor], limit: int) -> list[list[LazyTensor]]:
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"tensors: {twice!r} is given twice")
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _write_shards(folder: Path, shards: list[list[LazyTensor]]) -> None:
    if len(shards) == 1:
        write_tensors(folder / SINGLE, shards[0])
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        place = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / place, shard)
        places.update({tensor.name: place for tensor in shard})
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
