"""What a finished stage leaves behind, and the folders it lies in.

    <run>/stages/<name>-<hash>/            finished: complete or not there at all
        artefact.json                      hash, depends, needs, values, seconds; written last
        tree/                              orbax checkpoint of the result, when it has one
        history.jsonl                      one line an evaluation point
        rows.npz                           arrays of evaluations and results
        files/                             what a Compute wrote itself, when it did
    <run>/stages/<name>-<hash>.partial/    under way: checkpoints, evaluation points, files

A partial folder is filled, its `artefact` sub-folder renamed to the finished place, artefact.json
written there, and the rest removed: killed at any moment, either the artefact is complete or the
partial folder can go on.
"""

import functools
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.launch import runtime, weights
from kd_jax.launch.config import plain
from kd_jax.launch.weights import Weights

PyTree = Any


class NotPlanned(ValueError):
    """A stage asks for what only a run can know."""


class Artefact:
    """The result of a finished stage, read from its folder when asked for.

    weights(): the result's tree of arrays. values: plain numbers. history: one dict an evaluation
    point, {"step": ..., "<evaluation>/<number>": ...}. rows: arrays by name; those of evaluations
    are "<step>/<evaluation>/<array>". files: the folder of what the stage wrote itself.

    A planned artefact (folder None) has only the shapes of its tree.
    """

    def __init__(self, name: str, hash: str, folder: Path | None, abstract: PyTree = None):
        self.name = name
        self.hash = hash
        self.folder = folder
        self._abstract = abstract

    @property
    def run(self) -> Path:
        """The folder of the run that made it."""
        return self._folder().parent.parent

    def weights(self) -> Weights:
        """ValueError where the stage saved no tree."""
        if self.folder is None:
            if self._abstract is None:
                raise NotPlanned(f"stage {self.name}: the shapes of its result are not known")
            return Weights(self._abstract, self._planned)
        if not (self.folder / "tree").exists():
            raise ValueError(f"stage {self.name} saved no arrays: {self.folder}")
        return weights.from_checkpoint(self.folder / "tree")

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """All of artefact.json."""
        return json.loads((self._folder() / "artefact.json").read_text())

    @property
    def values(self) -> dict[str, Any]:
        return self.about["values"]

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        file = self._folder() / "history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        with np.load(self._folder() / "rows.npz", allow_pickle=False) as file:
            return dict(file)

    @property
    def files(self) -> Path:
        return self._folder() / "files"

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one number of the history: what a plot wants."""
        points = [(point["step"], float(point[name])) for point in self.history if name in point]
        if not points:
            known = sorted({key for point in self.history for key in point})
            raise KeyError(f"stage {self.name} has no {name}; it has {', '.join(known)}")
        return [step for step, _ in points], [value for _, value in points]

    def _folder(self) -> Path:
        if self.folder is None:
            raise NotPlanned(f"stage {self.name}: its values are not known while planning")
        return self.folder

    def _planned(self, _: PyTree) -> PyTree:
        raise NotPlanned(f"stage {self.name}: its arrays do not exist while planning")


class Place(NamedTuple):
    """Where one stage's files lie in a run's folder."""

    final: Path
    partial: Path

    @property
    def files(self) -> Path:
        """Where a Compute writes its files."""
        return self.partial / "files"


def place(run: Path, name: str, hash: str) -> Place:
    final = run / "stages" / f"{name}-{hash}"
    return Place(final, final.with_name(final.name + ".partial"))


def find(name: str, hash: str, runs: Sequence[Path]) -> Artefact | None:
    """The finished artefact in the first of `runs` that has it; they are only read."""
    for run in runs:
        folder = place(run, name, hash).final
        if (folder / "artefact.json").exists():
            return Artefact(name, hash, folder)
    return None


def tidy(where: Place) -> None:
    """Removes what a kill between the last two steps of `finish` left of a finished stage."""
    if runtime.is_main() and where.partial.exists():
        shutil.rmtree(where.partial)


def finish(
    where: Place,
    about: Mapping[str, Any],
    tree: PyTree | None,
    history: Sequence[Mapping[str, Any]],
    rows: Mapping[str, np.ndarray],
) -> Artefact:
    """Writes the artefact and removes the partial folder. Every process calls it."""
    fresh = where.partial / "artefact"

    def clear() -> None:
        for folder in (fresh, where.final):
            if folder.exists():
                shutil.rmtree(folder)
        fresh.mkdir(parents=True)

    runtime.on_main(clear)
    if tree is not None:
        from orbax.checkpoint import v1

        v1.save(str((fresh / "tree").absolute()), tree)

    def write() -> None:
        lines = [json.dumps(plain(point), allow_nan=False) + "\n" for point in history]
        (fresh / "history.jsonl").write_text("".join(lines))
        write_rows(fresh / "rows.npz", rows)
        if where.files.exists():
            where.files.rename(fresh / "files")
        fresh.rename(where.final)
        write_json(where.final / "artefact.json", about)
        shutil.rmtree(where.partial)

    runtime.on_main(write)
    return Artefact(about["name"], about["hash"], where.final)


def write_json(path: Path, data: Any) -> None:
    """Legal JSON, there in full or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(new, path)


def write_rows(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """An .npz file; unlike np.savez, it takes any name ("file") and refuses objects."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, row in rows.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(row), allow_pickle=False)


class Points:
    """The evaluations of a training under way, one file each: <step>-<name>.json and .npz.

    A resumed training passes points again that it evaluated before it was killed; being the same
    to the bit, they are read, not done again, so that the history has each once.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        # Listed once: every process takes the same decisions, whatever is written meanwhile.
        self._done = {file.stem for file in folder.glob("*.json")}

    def has(self, step: int, name: str) -> bool:
        return f"{step}-{name}" in self._done

    def read(self, step: int, name: str) -> dict[str, float]:
        """The numbers of one evaluation."""
        numbers = json.loads((self._folder / f"{step}-{name}.json").read_text())
        return {key: float(value) for key, value in numbers.items()}

    def add(self, step: int, name: str, found: Mapping[str, Any]) -> dict[str, float]:
        """Keeps one evaluation; returns its numbers."""
        arrays = {k: np.asarray(v) for k, v in found.items() if np.ndim(v) > 0}
        numbers = {k: float(v) for k, v in found.items() if np.ndim(v) == 0}
        if runtime.is_main():
            self._folder.mkdir(parents=True, exist_ok=True)
            if arrays:
                write_rows(self._folder / f"{step}-{name}.npz", arrays)
            write_json(self._folder / f"{step}-{name}.json", numbers)
        self._done.add(f"{step}-{name}")
        return numbers

    def collect(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """(history in the order of steps, rows)."""
        history: dict[int, dict[str, Any]] = {}
        rows = {}
        for stem in sorted(self._done):
            step, name = stem.split("-", 1)
            point = history.setdefault(int(step), {"step": int(step)})
            numbers = json.loads((self._folder / f"{stem}.json").read_text())
            point |= {f"{name}/{key}": value for key, value in numbers.items()}
            if (self._folder / f"{stem}.npz").exists():
                with np.load(self._folder / f"{stem}.npz", allow_pickle=False) as file:
                    rows |= {f"{step}/{name}/{key}": file[key] for key in file}
        return [history[step] for step in sorted(history)], rows
