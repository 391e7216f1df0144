"""The files of the output: which tensors are in which, and where in it."""

from collections.abc import Sequence
from typing import NamedTuple

from kd_jax.formats.huggingface import INDEX, SINGLE
from kd_jax.formats.safetensors import make_header
from kd_jax.merging.disk.task import Task


class Shard(NamedTuple):
    """A file of the output. head: its first bytes; offsets: where each tensor's data starts."""

    name: str
    head: bytes
    tasks: tuple[Task, ...]
    offsets: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(task.nbytes for task in self.tasks)


def cut_shards(tasks: Sequence[Task], limit: int, key: str) -> list[Shard]:
    """Shards of at most `limit` bytes, or of one tensor that is larger, in the tasks' order.

    key: what decides the merge's result; kept in each file's metadata.
    """
    groups: list[list[Task]] = [[]]
    filled = 0
    for task in tasks:
        if groups[-1] and filled + task.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(task)
        filled += task.nbytes
    many = len(groups) > 1
    return [
        _shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors" if many else SINGLE, group, key)
        for i, group in enumerate(groups, 1)
    ]


def _shard(name: str, tasks: list[Task], key: str) -> Shard:
    # Wider dtypes first, so that all are aligned.
    tasks = sorted(tasks, key=lambda task: -task.dtype.itemsize)
    metadata = {"format": "pt", "kd_jax_merge": key}
    head = make_header([(task.name, task.dtype, task.shape) for task in tasks], metadata)
    offsets, at = [], len(head)
    for task in tasks:
        offsets.append(at)
        at += task.nbytes
    return Shard(name, head, tuple(tasks), tuple(offsets))


def index(shards: Sequence[Shard]) -> dict | None:
    """The index of several shards; None of a single one."""
    if len(shards) == 1:
        return None
    total = sum(task.nbytes for shard in shards for task in shard.tasks)
    places = {task.name: shard.name for shard in shards for task in shard.tasks}
    return {"metadata": {"total_size": total}, "weight_map": places}


__all__ = ["INDEX", "Shard", "cut_shards", "index"]
