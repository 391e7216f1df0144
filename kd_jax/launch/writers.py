"""Where numbers go while a run is under way: JSONL always, TensorBoard, Weights & Biases."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kd_jax.launch.config import plain
from kd_jax.launch.errors import UserError


class Writer(Protocol):
    """scalars(step, {name: number}), as often as wanted; close() at the end."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Jsonl:
    """One line a call, {"step": ..., **tags, **values}; nan and infinities become strings.

    tags: fields of every line, {"stage": "finetune"}.
    start: the step at which the run goes on. Lines with the same tags and a later step, and a last
        line cut off by a kill, are removed: the file is what an uninterrupted run writes.
    """

    def __init__(self, path: str | Path, *, start: int = 0, tags: Mapping[str, Any] | None = None):
        self._tags = dict(tags or {})
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._trim(path, start)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def _trim(self, path: Path, start: int) -> None:
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            ours = all(record.get(name) == value for name, value in self._tags.items())
            if not ours or record.get("step", 0) <= start:
                kept.append(line + "\n")
        # Written beside and moved over it, so that a kill leaves one or the other.
        new = path.with_name(path.name + ".new")
        new.write_text("".join(kept), encoding="utf-8")
        os.replace(new, path)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        record = {"step": step, **self._tags, **values}
        self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files under `folder`; those of an earlier start after step `start` are hidden.

    prefix: a sub-folder, which TensorBoard shows as a run of its own: "finetune/". Without one,
        hiding would reach the steps of other stages.
    """

    def __init__(self, folder: str | Path, *, start: int = 0, prefix: str = ""):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / prefix), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A Weights & Biases run; `settings` go to wandb.init (project, name, config, dir, id)."""

    def __init__(self, *, prefix: str = "", **settings: Any):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("wandb is not installed: pip install 'kd_jax[wandb]'") from None
        self._prefix = prefix
        self._run = wandb.init(**settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({self._prefix + name: value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Writers:
    """All of several writers; of none, it writes nothing (processes other than the first)."""

    def __init__(self, *writers: Writer):
        self._writers = writers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.scalars(step, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
