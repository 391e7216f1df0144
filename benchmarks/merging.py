"""Merges of checkpoints on disk, whole processes, against a plain copy of as many bytes.

Three inputs of 120M parameters (a base and two others; two for SLERP), warm files. ms/GB is of the
bytes read, each once, and written. The limits on the ratio: 2 for linear and task arithmetic, 3 for
SLERP, 5 for TIES, DARE and breadcrumbs. The copy is one process of `shutil.copyfile`; it does not
wait until its output is on the disk, as ours does. Neither hashes what it reads, but in the row
that says so: the inputs' SHA-256 for the model card are the command's default.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from benchmarks import Row
from kd_jax.formats.huggingface import write_folder
from kd_jax.formats.tensors import LazyTensor, from_array

WIDTH, LAYERS, ROWS = 768, 10, 50_000  # of GPT-2's shapes: 120M parameters
ROUNDS = 5
COPY = """
import shutil, sys
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    shutil.copyfile(source, target)
"""
SPARSE = {"weight": 0.5, "density": 0.2}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.4},
    "linear, hashed": {"weight": 0.4},
    "task_arithmetic": {"weight": 0.4},
    "slerp": {"t": 0.4},
    "ties": SPARSE,
    "ties, flat": SPARSE,
    "dare_ties": SPARSE,
    "breadcrumbs": {"weight": 0.5, "density": 0.85},
    "della": SPARSE,
}


def rows() -> list[Row]:
    found = [_start()]
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for seed, model in enumerate(("base", "one", "two")):
                _write(folder / model, dtype, seed)
            os.sync()  # or the inputs would be on their way to the disk while we measure
            copied = ("base", "one")
            size = 2 * sum((folder / m / "model.safetensors").stat().st_size for m in copied)
            for method, parameters in METHODS.items():
                recipe, inputs = _recipe(folder, method, parameters)
                ours, reference = float("inf"), float("inf")
                for _ in range(ROUNDS):
                    merge = _merge(recipe, folder / "out", hashes="hashed" in method)
                    ours = min(ours, _timed(merge, folder / "out"))
                    reference = min(reference, _timed(_copy(folder, copied), folder / "copy"))
                moved = (inputs + 1) * size / 4
                numbers = ours / moved * 1e12, reference / size * 1e12
                found.append(Row(f"merging: {method}, {dtype}", *numbers, "ms/GB"))
    return found


def _start() -> Row:
    """A merge of next to nothing against Python with NumPy."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("base", "one", "two"):
            write_folder(folder / model, [from_array("w", np.ones(4, np.float32))], {})
        recipe, _ = _recipe(folder, "ties", {"weight": 1.0, "density": 1.0})
        merge = _merge(recipe, folder / "out", hashes=True)
        ours = min(_timed(merge, folder / "out") for _ in range(5))
        bare = min(_timed([sys.executable, "-c", "import numpy"], folder) for _ in range(5))
    return Row("merging: start-up", ours * 1e3, bare * 1e3, "ms")


def _write(folder: Path, dtype: np.dtype, seed: int) -> None:
    shapes = {"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        for place in ("q", "k", "v", "o"):
            shapes[f"model.layers.{i}.self_attn.{place}_proj.weight"] = (WIDTH, WIDTH)
        for place in ("gate", "up", "down"):
            shapes[f"model.layers.{i}.mlp.{place}_proj.weight"] = (WIDTH, 3 * WIDTH)
    random = np.random.default_rng(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> LazyTensor:
        def read(index: Any) -> np.ndarray:
            x = np.random.default_rng(len(name)).standard_normal(shape, np.float32)
            return (x + random.standard_normal(shape, np.float32) / 10).astype(dtype)

        return LazyTensor(name, shape, dtype, read)

    write_folder(folder, [tensor(name, shape) for name, shape in shapes.items()], {})


def _recipe(folder: Path, method: str, parameters: dict[str, Any]) -> tuple[Path, int]:
    """A recipe's file, and how many models it reads."""
    name, _, option = method.partition(", ")
    others = ["one"] if name == "slerp" else ["one", "two"]
    models = ["base", *others] if name == "linear" else others
    recipe = {
        "merge_method": name,
        "models": [{"model": model} for model in models],
        "parameters": parameters,
        **({} if name == "linear" else {"base_model": "base"}),
        **({"threshold": "flat"} if option == "flat" else {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path, 1 + len(others)


def _merge(recipe: Path, out: Path, *, hashes: bool) -> list[str]:
    line = [sys.executable, "-m", "kd_jax.merging", str(recipe), str(out), "--quiet"]
    return line if hashes else [*line, "--no-hashes"]


def _copy(folder: Path, models: Sequence[str]) -> list[str]:
    (folder / "copy").mkdir()
    pairs = [(folder / m / "model.safetensors", folder / "copy" / m) for m in models]
    return [sys.executable, "-c", COPY, *(str(path) for pair in pairs for path in pair)]


def _timed(command: Sequence[str], out: Path) -> float:
    """Seconds of a whole process; the files it leaves in `out` are removed."""
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    if out.name in ("out", "copy"):
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    return seconds
