"""A merge of folders, from the recipe's file to the output."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kd_jax.merging.disk import card, flat
from kd_jax.merging.disk.blocks import Work
from kd_jax.merging.disk.engine import Job, Writer, run_jobs, traffic
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.folder import Folder
from kd_jax.merging.disk.inputs import identity, open_models
from kd_jax.merging.disk.methods import METHODS
from kd_jax.merging.disk.plan import make_plan
from kd_jax.merging.disk.progress import drawn
from kd_jax.merging.disk.recipe import read_recipe
from kd_jax.merging.disk.shards import cut_shards
from kd_jax.merging.disk.tokenizers import check_tokenizers

_FORM = 1  # to be raised whenever the same recipe and inputs give other bytes


_THREADS = 4  # each has its own thresholds to find, which takes memory


class Result(NamedTuple):
    """waiting: shards that other processes have still to write; 0 when the output is there.

    nbytes: read, each once, and written. notes: of the plan.
    """

    waiting: int
    nbytes: int
    seconds: float
    notes: tuple[str, ...]


def merge(
    recipe_path: str | Path,
    out: str | Path,
    *,
    threads: int | None = None,
    process: int = 0,
    processes: int = 1,
    hashes: bool = True,
    quiet: bool = True,
) -> Result:
    """Merge the models of a recipe into the folder `out`.

    threads: None for one a processor, at most four. process, processes: which of how many processes
    this is, on one file system; each writes every `processes`-th shard, and the last to finish
    makes the output appear. hashes: the model card tells the SHA-256 of each input file, which
    costs a reading.

    MergeError: what is wrong with the recipe, the models or the place of the output. WriteFailed:
    it could not be written; what is finished is kept, and the same call goes on from there.
    """
    if not 0 <= process < processes:
        raise MergeError(f"process: got {process} of {processes}, takes 0 to {processes - 1}")
    recipe_path, out = Path(recipe_path), Path(os.path.abspath(out))
    recipe = read_recipe(recipe_path, frozenset(METHODS))
    models = open_models(recipe, recipe_path.parent)
    check_tokenizers(recipe, models)
    plan = make_plan(recipe, models)
    key = hashlib.sha256(f"{_FORM} {identity(recipe, models)}".encode()).hexdigest()
    shards = cut_shards(plan.tasks, recipe.max_shard_bytes, key)
    folder = Folder(out, key)
    if processes > 1 and folder.is_whole(shards):
        return Result(0, 0, 0.0, plan.notes)
    folder.check_out()
    folder.enter(process)
    writers: list[Writer] = []
    try:
        mine = [s for s in shards[process::processes] if not folder.has(s)]
        folder.check_space(sum(shard.nbytes for shard in mine))
        threads = threads or min(len(os.sched_getaffinity(0)), _THREADS)
        if recipe.flat and mine:
            cuts = flat.flat_cuts(plan.tasks, threads, allow_nan=recipe.allow_nan)
            mine = [s._replace(tasks=tuple(flat.with_flat_thresholds(s.tasks, cuts))) for s in mine]
        found = _Hashes()
        files = list(dict.fromkeys(path for model in models.values() for path in model.files))
        early = files if hashes and processes == 1 else []
        moved = sum(traffic(task) for shard in mine for task in shard.tasks)
        total = moved + sum(path.stat().st_size for path in early)
        with drawn(total, quiet=quiet) as progress:
            jobs = found.jobs(early, progress.add)
            for shard in mine:
                writers.append(Writer(folder.path, shard))
                jobs += writers[-1].jobs(progress.add)
            run_jobs(jobs, threads, allow_nan=recipe.allow_nan)

        def add_rest(path: Path) -> None:
            if hashes and processes > 1:  # the one who gets here
                run_jobs(found.jobs(files), threads, allow_nan=True)
            card.write_rest(path, recipe, plan, models, shards, found)

        whole = folder.assemble(shards, add_rest)
        waiting = 0 if whole else sum(not folder.has(shard) for shard in shards)
        return Result(waiting, moved, progress.seconds, plan.notes)
    finally:
        for writer in writers:
            writer.close()
        folder.leave(shards)


class _Hashes(dict[Path, str]):
    """SHA-256 of input files, filled by its jobs."""

    def jobs(
        self, files: Sequence[Path], progress: Callable[[int], None] = lambda count: None
    ) -> list[Job]:
        return [Job(partial(self._take, path, progress)) for path in files]

    def _take(self, path: Path, progress: Callable[[int], None], work: Work) -> None:
        self[path] = card.sha256(path, progress)
