"""The folder of a run: where it is, whose it is, and that nothing half-made is left in it."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kd_jax.launch import runtime
from kd_jax.launch.config import differences, digest
from kd_jax.launch.errors import UserError


def run_hash(name: str, identity: Mapping[str, Any]) -> str:
    """Of an experiment's module name and the identity of its config."""
    return digest({"module": name, "identity": identity})


def chosen(
    name: str, preset: str, identity: Mapping[str, Any], workdir: str | None
) -> tuple[Path, list[Path]]:
    """(the run's folder, folders of other runs of the module to read finished artefacts from).

    By default runs/<family>/<module>/<preset>-<hash>, and those beside it; only itself for a
    `workdir` that was asked for. UserError for a bucket.
    """
    if workdir is not None:
        if "://" in workdir:
            raise UserError(
                f"--workdir: got {workdir}, takes a folder; mount the bucket and name the place "
                "where it is mounted"
            )
        return Path(workdir), []
    parts = name.removeprefix("experiments.").split(".")
    folder = Path("runs", *parts, f"{preset}-{run_hash(name, identity)}")
    others = folder.parent.glob("*/stages") if folder.parent.exists() else []
    return folder, sorted(other.parent for other in others if other.parent != folder)


@contextlib.contextmanager
def opened(folder: Path, module: str, identity: Mapping[str, Any]) -> Iterator[None]:
    """Makes the run's folder. Where a UserError or a missing file ends the run before it has
    anything to keep, what was made is removed again.

    UserError for a folder that cannot be written, holds something else, or holds a run with
    another identity. Every process calls it.
    """

    def make() -> list[Path]:
        _check_ours(folder, {"module": module, **identity})
        absent = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
        return absent

    made = runtime.on_main(make)
    try:
        yield
    except (UserError, OSError):
        if made and not _keeps(folder):
            shutil.rmtree(folder)
            for parent in made[1:]:
                with contextlib.suppress(OSError):  # another run has come to lie in it
                    parent.rmdir()
        raise


def _keeps(folder: Path) -> bool:
    """Is there a finished artefact, an evaluation or a checkpoint?"""
    found = [*folder.glob("stages/*/artefact.json"), *folder.glob("stages/*/evaluations/*.json")]
    return bool(found) or any(any(x.iterdir()) for x in folder.glob("stages/*/checkpoints"))


def _check_ours(folder: Path, ours: Mapping[str, Any]) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file; a run takes a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        there = json.loads((folder / "config.json").read_text())
        theirs = {"module": there["module"], **there["identity"]}
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder} holds files that are not of a run; give an empty or a new --workdir"
        ) from None
    changed = differences(ours, theirs)
    if changed:
        raise UserError(
            f"{folder} holds a run with another identity ({'; '.join(changed)}); give the same "
            "values, or another --workdir"
        )
