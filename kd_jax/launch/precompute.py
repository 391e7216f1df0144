"""Log-probabilities of a frozen reference, stored once and then read instead of the reference.

A stage scores the data and keeps the rows together with hashes of the data and of the reference.
Whoever trains on the rows says of which data and which model they are to be; where one of the two
is another, the rows are refused. The reference itself is not loaded again:

    rows = precompute.rows_of(
        found["reference_score"],
        data=precompute.data_hash(examples),
        model=precompute.model_hash(found["finetune"]),
    )
    examples["reference_log_probs"] = rows["log_prob"]
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.errors import UserError
from kd_jax.launch.stages import Compute, Program, Stage
from kd_jax.trees import flatten

Found = Mapping[str, Artefact]

_WHOLE = 2**28  # bytes up to which a file is read whole
_STRIDE, _PIECE = 2**24, 2**16  # of a larger file: of each so many bytes so many, and the last


def data_hash(arrays: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the names, dtypes, shapes and bytes of arrays.

    arrays: what the reference was given: inputs, targets, weights [N, T] and index [N] by name;
    mappings in it count by their paths ("chosen/inputs"). The order of names does not matter, that
    of rows does. ValueError for objects.
    """
    total = hashlib.sha256()
    for path, x in flatten(arrays).items():  # sorted by names
        x = np.asarray(x)
        if x.dtype.hasobject:
            raise ValueError(f"{path}: got objects, takes an array of numbers")
        total.update(f"{path}\0{x.dtype.name}\0{x.shape}\0".encode())
        total.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def model_hash(model: Artefact | Sequence[str | os.PathLike[str]]) -> str:
    """What tells a reference from others: an artefact's hash, or one of a model's files.

    An artefact's hash is of all that it was made from. Of files it is the SHA-256 of their names,
    sizes and contents: all of one of up to 256 MiB; of a larger one 64 KiB in every 16 MiB and
    the last, so that a start reads 0.4 % of what loading would. It is not of headers, which are
    the same in a fine-tuned copy; a copy with any 16 MiB changed throughout has another hash.

    UserError for a file that is not there.
    """
    if isinstance(model, Artefact):
        return model.hash
    total = hashlib.sha256()
    for file in sorted(map(Path, model), key=lambda file: file.name):
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for start in _starts(size):
                stream.seek(start)
                total.update(stream.read(_PIECE))
    return total.hexdigest()


def stage(
    name: str,
    *,
    score: Callable[[Found, Any], Mapping[str, Any]],
    data: Callable[[], Any],
    model: Callable[[Found], str],
    needs: tuple[str, ...] = (),
    depends: Any = None,
    plan: Callable[[Found, Mesh], Mapping[str, Program]] | None = None,
) -> Stage:
    """A stage that scores once and keeps what `rows_of` reads.

    score(artefacts, data) -> {column: array [N], in the order of the data's rows}: one for NPO,
    chosen and rejected for DPO; plain numbers among them become values. data() -> the arrays that
    are scored, loaded when the stage runs. model(artefacts) -> `model_hash` of the reference.
    needs, depends: as of a Stage; plan(artefacts, mesh): as of a Compute.
    """

    def build(found: Found) -> Compute:
        def run() -> tuple[None, Mapping[str, Any]]:
            arrays = data()
            # Of what was given to score, whatever it does to it.
            about = {"data": data_hash(arrays), "model": model(found)}
            scored = score(found, arrays)
            if taken := about.keys() & scored.keys():
                raise ValueError(f"stage {name}: score returned {', '.join(sorted(taken))}")
            return None, {**scored, **about}

        if plan is None:
            return Compute(run)
        return Compute(run, plan=functools.partial(plan, found))

    return Stage(name, build, needs, depends)


def rows_of(artefact: Artefact, *, data: str, model: str) -> dict[str, np.ndarray]:
    """The columns that a `stage` stored, read without the reference.

    data, model: the hashes of what the caller has. UserError, naming both sides, when the rows are
    of other data or of another model; ValueError for the artefact of some other stage.
    """
    if not {"data", "model"} <= artefact.values.keys():
        raise ValueError(f"stage {artefact.name} stored no hashes of data and model")
    wanted = {"data": data, "model": model}
    wrong = [
        f"{what} {artefact.values[what][:12]} there, {mine[:12]} here"
        for what, mine in wanted.items()
        if artefact.values[what] != mine
    ]
    if wrong:
        raise UserError(
            f"stage {artefact.name}: its log-probabilities are of something else "
            f"({'; '.join(wrong)}); remove {artefact.folder} to compute them again"
        )
    return dict(artefact.rows)


def _starts(size: int) -> Iterator[int]:
    """Where the pieces of a file of so many bytes begin."""
    yield from range(0, size, _PIECE if size <= _WHOLE else _STRIDE)
    if size > _WHOLE:
        yield size - _PIECE
