"""The folder that an output grows in: hidden, beside where it will be, and kept until it is whole.

A shard that is finished stays, so that the same merge, started again after a kill or with more
space, goes on with the others; several processes may write different shards. When all are there the
rest is added and the folder is renamed: the output appears whole or not at all.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from kd_jax.merging.disk.errors import MergeError, WriteFailed
from kd_jax.merging.disk.shards import Shard

_KEY, _LOCK, _BUSY = ".key", ".lock", ".busy"


class Folder:
    """The folder in which `out` grows. key: what decides the result."""

    def __init__(self, out: Path, key: str):
        self.out = out
        self.path = out.with_name(f".{out.name}.merging")
        self._key = key
        self._busy: IO[bytes] | None = None

    def check_out(self) -> None:
        """MergeError unless the output can be put where it should be."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise MergeError(f"{self.out}: exists and is not empty; name another folder")

    def enter(self, process: int) -> None:
        """Makes the folder, or takes up what this very merge left; another's leftovers go.

        MergeError while another process is at it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock():
                key = self.path / _KEY
                if not key.is_file() or key.read_text() != self._key:
                    self._clear()
                    key.write_text(self._key)
                self._busy = _hold(self.path / f"{_BUSY}-{process}")
        except OSError as error:
            raise WriteFailed(f"{self.path}: cannot be written ({error.strerror})") from None
        if self._busy is None:
            raise MergeError(f"{self.out}: is being written by another process")

    def _clear(self) -> None:
        if self._others_at_it():
            raise MergeError(f"{self.out}: another merge is being written to it")
        for path in self.path.iterdir():
            if path.name != _LOCK:
                path.unlink()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.path / _LOCK).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def has(self, shard: Shard) -> bool:
        """Whether a shard is finished."""
        return _holds(self.path / shard.name, shard)

    def is_whole(self, shards: Sequence[Shard]) -> bool:
        """Whether the output of this very merge is where it should be."""
        return all(_holds(self.out / shard.name, shard) for shard in shards)

    def check_space(self, needed: int) -> None:
        """MergeError when the disk has less than that many bytes left."""
        try:
            stat = os.statvfs(self.path)
        except OSError:
            return
        free = stat.f_bavail * stat.f_frsize
        if free < needed:
            raise MergeError(
                f"{self.out}: needs {needed / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB free"
            )

    def assemble(self, shards: Sequence[Shard], add_rest: Callable[[Path], None]) -> bool:
        """Renames the folder to the output when all shards are there; whether that is done now.

        add_rest(folder): writes all but the shards.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._lock())
            except FileNotFoundError:  # renamed by another process
                return self.is_whole(shards)
            if self.is_whole(shards):
                return True
            if not all(self.has(shard) for shard in shards):
                return False
            try:
                add_rest(self.path)
                _sync(self.path)
                self.path.rename(self.out)
                _sync(self.out.parent)
            except OSError as error:
                raise WriteFailed(f"{self.out}: cannot be written ({error.strerror})") from None
            for path in self.out.glob(".*"):
                path.unlink()
        return True

    def leave(self, shards: Sequence[Shard]) -> None:
        """Gives up what the process holds; the last one leaves nothing but finished shards."""
        if self._busy is not None:
            self._busy.close()
        with contextlib.suppress(FileNotFoundError), self._lock():  # it may have been renamed
            if not self._others_at_it() and not any(self.has(shard) for shard in shards):
                shutil.rmtree(self.path, ignore_errors=True)

    def _others_at_it(self) -> bool:
        for path in self.path.glob(f"{_BUSY}-*"):
            held = _hold(path)
            if held is None:
                return True
            held.close()
        return False


def _holds(path: Path, shard: Shard) -> bool:
    try:
        if path.stat().st_size != shard.nbytes:
            return False
        with path.open("rb") as file:
            return file.read(len(shard.head)) == shard.head
    except OSError:
        return False


def _hold(path: Path) -> IO[bytes] | None:
    """The file, locked until it is closed; None when another process has locked it."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
