"""A folder of saved trees, one a step, on storage that may fail: repeated, then given up."""

import contextlib
import functools
import itertools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.launch import runtime
from kd_jax.launch.beat import beat
from kd_jax.launch.errors import StorageFailed, UserError

PyTree = Any

# Each opening of a folder has a number of its own in the names of orbax's barriers: processes of
# which one failed have not met at the same ones, and could never again under the old names.
_OPENED = itertools.count()
_REASON = 512  # bytes of a reason that processes tell each other


class Storage:
    """The trees in one folder, which all processes of a run share.

    policy: orbax's preservation policy. pauses: seconds before each repetition of a save that
    failed; when the last one fails, too, it is StorageFailed. patience: seconds after which a save
    counts as failed, None for environment KD_JAX_SAVE_SECONDS or 300: so long do processes wait
    for one that could not write its part.

    UserError when the folder cannot be written.
    """

    def __init__(
        self, folder: Path, policy: Any, *, pauses: Sequence[float], patience: int | None = None
    ):
        self._folder = folder
        self._policy = policy
        self._pauses = pauses
        self._patience = _default_patience() if patience is None else patience
        self._saving: _Saving | None = None
        try:
            _check_writable(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
        self._orbax = self._open()
        self._good = max(self.steps, default=None)  # the last step known to be written

    @property
    def steps(self) -> list[int]:
        """The steps that are there, in order, and the one that is being saved."""
        return [found.step for found in self._orbax.checkpoints]

    def metadata(self, step: int) -> Any:
        """What was saved with the tree. A broken file can raise anything."""
        return self._orbax.metadata(step).custom_metadata

    def load(self, step: int, abstract: PyTree) -> PyTree:
        """The tree in the shardings of `abstract`. A broken file can raise anything."""
        return self._orbax.load(step, abstract)

    def delete(self, step: int) -> None:
        self._orbax.delete(step)
        self._good = max(self.steps, default=None)

    def save(self, step: int, tree: PyTree, metadata: Mapping[str, Any], *, wait: bool) -> None:
        """Saves a step once; returns when the tree has been copied or, with wait, is on disk.

        A save that fails is repeated. One that failed in the background is noticed by the next,
        which then saves its own tree instead, and waits; a warning says so. All processes call it
        for the same step, and take the same course.

        StorageFailed, in every process, when each repetition has failed.
        """
        failed = self._settle()
        if failed is None:
            if step in self.steps:
                return
            fault = self._write(step, tree, metadata, wait)
            if fault is None:
                return
            failed = step, fault
        for pause in self._pauses:
            instead = "trying again" if failed[0] == step else f"saving step {step} instead"
            self._warn(*failed, instead)
            time.sleep(pause)
            beat()
            fault = self._reopen()
            if fault is None and step not in self.steps:
                fault = self._write(step, tree, metadata, wait=True)
            if fault is None:
                return
            failed = step, fault
        with contextlib.suppress(OSError):
            _clear(self._folder)
        raise StorageFailed(self._folder, self._short(failed[1]), self._good)

    def wait(self) -> None:
        """Until what is being saved is on disk; a warning where it failed, and then is not there.

        A process may call it alone.
        """
        saving = self._saving
        if saving is not None and saving.fault is not None:
            good = "there is none before it"
            if self._good is not None:
                good = f"the last good one is of step {self._good}"
            self._warn(saving.step, saving.fault, good)

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def _open(self) -> Any:
        # Any: what it returns is annotated as every kind of JSON.
        from orbax.checkpoint import v1

        context: Any = v1.Context()
        context.asynchronous.timeout_secs = self._patience
        # A folder that cannot be made in the background leaves threads that wait for it, five
        # minutes even at the end of the process. Made at once, one of several processes could fail
        # alone while the others wait for it.
        context.asynchronous.create_directories_asynchronously = not runtime.is_alone()
        context.multiprocessing.barrier_sync_key_prefix = f"storage-{next(_OPENED)}"
        return v1.training.Checkpointer(
            str(self._folder),
            context=context,
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
        )

    def _write(self, step: int, tree: PyTree, metadata: Any, wait: bool) -> str | None:
        """Saves, or starts to; what went wrong in any process."""

        def write() -> None:
            self._orbax.save_async(step, tree, force=True, custom_metadata=metadata)
            if wait:
                self._orbax.wait()

        fault = _agree(_fault(write))
        if fault is None and wait:
            self._good = step
        elif fault is None:
            self._saving = _Saving(step, self._orbax.wait)
        return fault

    def _settle(self) -> tuple[int, str] | None:
        """(step, what went wrong in any process) of the save in the background, when it failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return None
        fault = _agree(saving.fault)
        if fault is not None:
            return saving.step, fault
        self._good = saving.step
        return None

    def _reopen(self) -> str | None:
        """Clears what a failed save left and looks at the folder anew; what went wrong anywhere."""

        def clear() -> None:
            _check_writable(self._folder)
            if runtime.is_main():
                _clear(self._folder)

        def reopen() -> None:
            before, self._orbax = self._orbax, self._open()
            before.close()

        # What went wrong is known; a process that could start its part may still be at it.
        _fault(self._orbax.wait)
        # One after the other: processes meet while the folder is opened, all or none of them.
        fault = _agree(_fault(clear)) or _agree(_fault(reopen))
        if fault is None:
            self._good = max(self.steps, default=None)
        return fault

    def _warn(self, step: int, fault: str, then: str) -> None:
        warnings.warn(
            f"{self._folder}: the checkpoint of step {step} could not be written "
            f"({self._short(fault)}); {then}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _short(self, fault: str) -> str:
        return fault.replace(f"{self._folder}/", "")


class _Saving:
    """A save in the background."""

    def __init__(self, step: int, wait: Callable[[], None]):
        self.step = step
        self._wait = wait

    @functools.cached_property
    def fault(self) -> str | None:
        """What went wrong with it in this process. Asking waits for its end; orbax tells once."""
        return _fault(self._wait)


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:_REASON]}" if text else repr(error)


def _fault(f: Callable[[], object]) -> str | None:
    """What f raises, in one line; None when it raises nothing."""
    try:
        f()
    except Exception as error:  # storage can fail with anything
        return first_line(error)
    return None


def _agree(fault: str | None) -> str | None:
    """The fault of one process, the same in all; None when none has any. All of them call it."""
    if runtime.is_alone():
        return fault
    from jax.experimental import multihost_utils

    row = np.zeros(_REASON, np.uint8)
    text = (fault or "").encode()[:_REASON]
    row[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row))
    texts = [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]
    found = [f"process {i}: {text}" for i, text in enumerate(texts) if text]
    # A process that waited in vain for another knows less than that one.
    found.sort(key=lambda text: ": TimeoutError: " in text)
    return found[0] if found else None


def _check_writable(folder: Path) -> None:
    """OSError where it is not. Processes on several machines may have the same pid."""
    probe = folder / f".writable-{jax.process_index()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()


def _clear(folder: Path) -> None:
    """Removes what saves left that did not come to their end."""
    for left in folder.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(left)


def _default_patience() -> int:
    value = os.environ.get("KD_JAX_SAVE_SECONDS") or "300"
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"KD_JAX_SAVE_SECONDS: got {value!r}, takes a whole number from 1")
    return int(value)
