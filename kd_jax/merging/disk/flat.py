"""TIES with one threshold for a model's whole task vector, as in the paper, out of core.

A first pass over all tensors finds the thresholds, exactly; the second merges with them. Where the
sample that the first starts from misleads, it takes one or two passes more.
"""

import functools
from collections.abc import Sequence
from functools import partial

import numpy as np

from kd_jax.merging import formulas
from kd_jax.merging.disk import sparsify
from kd_jax.merging.disk.blocks import Files, Work
from kd_jax.merging.disk.engine import Job, run_jobs
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.selection import Cut, Selection
from kd_jax.merging.disk.sparsify import LargestMask, Masks, Sparse
from kd_jax.merging.disk.task import Task
from kd_jax.merging.disk.task_vectors import merge_task_vectors

_PLACES = 256  # of the sample


def with_flat_thresholds(tasks: Sequence[Task], cuts: Sequence[Cut | None]) -> list[Task]:
    """The tasks, with these cuts for the models instead of each tensor's own."""

    def masks(task: Task, work: Work) -> Masks:
        return [None if cut is None else LargestMask(cut) for cut in cuts]

    merge = partial(merge_task_vectors, sparse=Sparse(masks), vote=True)
    return [task._replace(merge=merge) if task.base is not None else task for task in tasks]


def flat_cuts(tasks: Sequence[Task], threads: int, *, allow_nan: bool = False) -> list[Cut | None]:
    """For each model the cut that keeps int(density * D) of the D entries of all tensors.

    Entries as large as the smallest kept one are kept as well, as `kd_jax.merging.ties.trim` does.
    None for a density of 1. MergeError for a density that is not the same for all tensors.
    """
    tasks = [task for task in tasks if task.base is not None]
    if not tasks:
        return []
    total = sum(task.size for task in tasks)
    ranks: dict[int, int] = {}
    for n, part in enumerate(tasks[0].parts):
        densities = {float(task.parts[n].parameters["density"]) for task in tasks}
        if len(densities) > 1:
            raise MergeError(f"density: with threshold: flat {part.model} takes one for all")
        (density,) = densities
        if density < 1.0:
            try:
                ranks[n] = formulas.kept(total, density)
            except ValueError as error:
                raise MergeError(str(error)) from None
    samples = _samples(tasks, list(ranks), total, allow_nan)
    selections = {n: Selection(total, k, samples.get(n)) for n, k in ranks.items()}
    cuts: list[Cut | None] = [None] * len(tasks[0].parts)
    while selections:
        feeding = sorted(selections.items())
        jobs = [
            Job(functools.partial(_feed, task, feeding), task.inputs)
            for task in sorted(tasks, key=lambda task: -task.size)
        ]
        run_jobs(jobs, threads, allow_nan=allow_nan)
        for n, selection in feeding:
            selection.finish()
            if selection.cut is not None:
                cuts[n] = selection.cut._replace(all_ties=True)
                del selections[n]
    return cuts


def _feed(task: Task, selections: Sequence[tuple[int, Selection]], work: Work) -> None:
    work.begin(task, lambda start, block: None)
    sparsify.feed(task, work, selections)


def _samples(
    tasks: Sequence[Task], models: Sequence[int], total: int, allow_nan: bool
) -> dict[int, np.ndarray]:
    found: dict[int, list[np.ndarray]] = {n: [] for n in models}
    with Files() as files:
        work = Work(files, allow_nan=allow_nan)
        for task in tasks:
            work.begin(task, lambda start, block: None)
            places = round(_PLACES * task.size / total)
            for n, one in sparsify.sample(task, work, models, places).items():
                found[n].append(one)
    return {n: np.concatenate(parts) for n, parts in found.items() if parts}
