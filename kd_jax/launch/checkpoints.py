"""Checkpoints of a run: saved in the background, exact, tied to the identity of the run.

The orbax v1 API, which may still change, is used by storage.py, weights.py and artefacts.py only.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from kd_jax.launch import runtime
from kd_jax.launch.config import differences, plain
from kd_jax.launch.encoding import abstract_arrays, decode, encode, fingerprint
from kd_jax.launch.errors import NonFinite, UserError
from kd_jax.launch.storage import Storage, first_line
from kd_jax.types import TrainState


class Checkpoints:
    """The checkpoints in one folder: the latest `keep`, and the best.

    identity: plain data that decides the result; a checkpoint saved under another is refused.
    every: a checkpoint each so many steps (`fit` asks). best(metrics) -> a number: the checkpoint
    with the largest stays, too. origins: where frozen weights came from (path, hash), kept with
    each checkpoint; frozen weights themselves are not.
    pauses, patience: what becomes of a save that fails, see `Storage`.

    UserError when the folder cannot be written. All processes of a run share the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        keep: int = 2,
        best: Callable[[Mapping[str, float]], float] | None = None,
        *,
        every: int = 100,
        origins: Mapping[str, Any] | None = None,
        pauses: Sequence[float] = (1.0, 4.0, 16.0),
        patience: int | None = None,
    ):
        if keep < 1 or every < 1:
            raise ValueError(f"keep: got {keep}, every: got {every}; both take at least 1")
        self.every = every
        self._identity = json.loads(json.dumps(plain(identity)))
        self._origins = plain(origins or {})
        self._best = best
        self._folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self._scores: dict[int, float] = {}
        self._storage = Storage(
            self._folder, _Keep(keep, self._scores), pauses=pauses, patience=patience
        )
        for step in self.steps if best is not None else []:
            # One that cannot be read has no score; restore_latest deals with it.
            with contextlib.suppress(Exception):
                self._scores[step] = self._storage.metadata(step)["score"]

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return self._storage.steps

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Starts saving and returns once the state has been copied; saves a step once.

        wait: returns once it is on disk. The last save of a run takes it: one that fails in the
        background is noticed by the next, which then saves its own state instead. All processes
        call it for the same step.

        NonFinite when the parameters are not finite; nothing is saved then. StorageFailed, in
        every process, when a save failed and so did its repetitions.
        """
        if step in self.steps and not wait:
            return
        arrays = encode(state)
        sums, finite = fingerprint(arrays)
        if not bool(finite):
            raise NonFinite(step - 1, "a parameter after it")
        score = None if self._best is None else float(self._best(metrics or {}))
        if score is not None:
            self._scores[step] = score
        about = {
            "score": score,
            "identity": self._identity,
            "origins": self._origins,
            "fingerprint": [int(x) for x in jax.device_get(sums)],
        }
        self._storage.save(step, arrays, about, wait=wait)

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest state that can be read whole, or None when none was ever saved.

        abstract: ShapeDtypeStructs with the shardings to restore to, which may be of another mesh
        than it was saved from. A checkpoint that cannot be read is passed over for the one before
        with a warning, and removed once an older one is restored.

        UserError when a checkpoint has another identity, or when there are some and none is whole.
        """
        self.wait()
        steps = self.steps
        faults: dict[int, str] = {}
        for step in reversed(steps):
            state, fault = self._try(step, abstract)
            if runtime.everywhere(fault is None):
                for broken in faults:
                    self._storage.delete(broken)
                return state
            faults[step] = fault or "another process cannot read it"
            warnings.warn(
                f"{self._folder}: the checkpoint of step {step} is corrupt and is skipped "
                f"({faults[step]})",
                RuntimeWarning,
                stacklevel=2,
            )
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints {steps} can be read; remove it "
                f"to start again ({faults[steps[-1]]})"
            )
        return None

    def restore_best(self, abstract: TrainState) -> TrainState:
        """The state that `best` ranked highest. ValueError when none was ranked."""
        self.wait()
        ranked = {step: self._scores[step] for step in self.steps if step in self._scores}
        if not ranked:
            raise ValueError(f"{self._folder}: no checkpoint was saved with best=...")
        top = max(ranked, key=lambda step: ranked[step])
        state, fault = self._try(top, abstract)
        if state is None or not runtime.everywhere(fault is None):
            raise UserError(f"{self._folder}: the best checkpoint, step {top}: {fault}")
        return state

    def wait(self) -> None:
        """Until what is being saved is on disk; a warning where it failed, and is no checkpoint."""
        self._storage.wait()

    def close(self) -> None:
        self._storage.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _try(self, step: int, abstract: TrainState) -> tuple[TrainState | None, str | None]:
        """(state, None), or (None, what is wrong with the checkpoint)."""
        try:
            saved = self._storage.metadata(step) or {}
            identity, sums = saved["identity"], saved["fingerprint"]
        except Exception as error:  # a broken file can raise anything
            return None, f"metadata: {first_line(error)}"
        changed = differences(self._identity, identity)
        if changed:
            raise UserError(
                f"{self._folder} holds a run with another identity ({'; '.join(changed)}); give "
                "the same values, or another --workdir"
            )
        try:
            arrays = self._storage.load(step, abstract_arrays(abstract))
            found, _ = fingerprint(arrays)
        except Exception as error:
            return None, first_line(error)
        if [int(x) for x in jax.device_get(found)] != sums:
            return None, "its arrays are not those that were saved"
        return decode(arrays, abstract), None


class _Keep:
    """Which checkpoints stay: the latest, and the one with the highest score."""

    def __init__(self, latest: int, scores: Mapping[int, float]):
        self._latest, self._scores = latest, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [found.step for found in checkpoints]
        ranked = [step for step in steps if step in self._scores]
        best = max(ranked, key=lambda step: self._scores[step], default=None)
        return [step in steps[-self._latest :] or step == best for step in steps]
