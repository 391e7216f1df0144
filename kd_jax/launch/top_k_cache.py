"""A teacher's likeliest next tokens, stored once and then trained on instead of the teacher.

A stage scores rows of text and writes one array_record file: a record for each row
(`data.top_k_records`), and before them one that says which teacher, data and tokeniser they are of.
Whoever trains on the file says what it is to be of; where something differs, the file is refused.
The teacher itself is not loaded again:

    cache = top_k_cache.opened(found["cache"].files, about)
    source = top_k_cache.joined(sources.array_batches(rows, ...), cache)

Rows are scored on the whole mesh; every process gets those of two batches at a time, and process 0
writes them. The file appears complete or not at all. Besides what `data.top_k_records` says of
tokens, a row of any length takes some 200 bytes of it.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kd_jax.data import shapes
from kd_jax.data.sources import Batch, Source
from kd_jax.data.top_k_records import VERSION, Known, Layout, decode, encode
from kd_jax.launch import evaluation, runtime
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import differences
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.precompute import data_hash
from kd_jax.launch.sharding import Rules
from kd_jax.launch.stages import Compute, Program, Stage, materialise, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.objectives.score import top_k_scores
from kd_jax.steps import make_eval_step
from kd_jax.types import Model

Found = Mapping[str, Artefact]

_FILE = "top_k.array_record"
_WRITE = "group_size:1,uncompressed"  # records are deflated already, and read one by one
_READ = "readahead_buffer_size:0,max_parallelism:0"
_EXTENT = ("rows", "length")  # of the header: decided by the data


class About(NamedTuple):
    """What log-probabilities are of, and how they are stored.

    teacher, data: `precompute.model_hash`, and `precompute.data_hash` of the rows that were scored.
    tokenizer: `tokenizer_hash`.
    """

    teacher: str
    data: str
    tokenizer: str
    layout: Layout


def tokenizer_hash(*parts: str) -> str:
    """SHA-256, in hexadecimal, of what decides a tokeniser: its tokens in the order of their ids
    (`WordTokenizer.tokens`), or all of it written out (`Tokenizer.backend.to_str()`)."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stage(
    name: str,
    *,
    model: Model,
    weights: Callable[[Found], Weights],
    rules: Rules,
    teacher: Callable[[Found], str],
    data: Callable[[], Mapping[str, Any]],
    length: int,
    tokenizer: str,
    layout: Layout,
    batch_size: int,
    mesh: MeshConfig,
    chunk: int | None = None,
    needs: tuple[str, ...] = (),
    depends: Any = None,
) -> Stage:
    """A stage that scores rows of text once; `opened` reads the `files` of its artefact.

    model, weights(artefacts), rules: the teacher's, placed by rules; teacher(artefacts) -> its
    `precompute.model_hash`. data() -> a text batch of all rows [N, length], loaded when the stage
    runs; row i has the index i. tokenizer: `tokenizer_hash`. batch_size: rows scored at once, of
    which the logits of a piece of `chunk` positions lie in memory. needs, depends: as of a Stage.

    Values of the artefact: tokens (weighed positions), bytes of the file, bytes_per_token.
    """
    step = make_eval_step(top_k_scores(model, layout.checked().k, chunk=chunk))

    def build(found: Found) -> Compute:
        def files(folder: Path) -> Mapping[str, Any]:
            rows, where = data(), make_mesh(mesh)
            _check_rows(name, rows, length)
            about = About(teacher(found), data_hash(rows), tokenizer, layout)
            params = {"model": materialise(weights(found), where, rules), "aux": {}}
            scored = evaluation.stream(
                step, params, {}, {}, rows, batch_size=batch_size, mesh=where
            )
            return write(folder, about, scored, rows["weights"])

        def plan(where: Mesh) -> Mapping[str, Program]:
            params = {"model": shapes_on(weights(found), where, rules), "aux": {}}
            batch = shapes.text(batch_size, length)
            return {"likeliest": evaluation.program(step, params, {}, {}, batch, mesh=where)}

        return Compute(lambda: (None, {}), plan=plan, files=files)

    return Stage(name, build, needs, depends)


def write(
    folder: Path, about: About, scored: Iterable[Mapping[str, np.ndarray]], weights: np.ndarray
) -> dict[str, float]:
    """Writes the rows of `objectives.score.top_k_scores`, batch after batch; returns `stage`'s
    values. Every process calls it with the same rows; weights [N, T]: 0 where none are kept."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rows, length = weights.shape
    final = Path(folder) / _FILE
    fresh = final.with_name(final.name + ".partial")
    held: list[Any] = []  # the writer, in process 0

    def begin() -> None:
        held.append(ArrayRecordWriter(str(fresh), _WRITE))
        held[0].write(json.dumps(_header(about) | {"rows": rows, "length": length}).encode())

    def add(batch: Mapping[str, np.ndarray], start: int) -> None:
        each = zip(*(batch[name] for name in Known._fields), strict=True)
        for number, row in enumerate(each, start):
            held[0].write(encode(about.layout, Known(*row), weights[number]))

    def end() -> int:
        held[0].close()
        os.replace(fresh, final)
        return final.stat().st_size

    done = 0
    try:
        runtime.on_main(begin)
        for batch in scored:
            runtime.on_main(functools.partial(add, batch, done))
            done += len(batch["ids"])
        if done != rows:
            raise ValueError(f"scored: got {done} rows, takes one for each of weights, {rows}")
        size = runtime.on_main(end) or 0
    except BaseException:
        for writer in held:
            if writer.is_open():
                writer.close()
            fresh.unlink(missing_ok=True)
        raise
    tokens = int((np.asarray(weights) != 0).sum())
    return {"tokens": tokens, "bytes": size, "bytes_per_token": size / max(1, tokens)}


class Cache:
    """Rows of a stored teacher by number."""

    def __init__(self, reader: Any, layout: Layout, rows: int, length: int):
        self._reader = reader
        self.layout = layout
        self.rows = rows
        self.length = length

    def columns(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Of the rows with these numbers [B]: "top_k_ids" i32 [B, T, K], "top_k_log_probs" f32
        [B, T, K] and "top_k_log_tail" f32 [B, T]; zeros for the number -1, of padding."""
        index = np.asarray(index)
        real = np.flatnonzero(index >= 0)
        found = {
            name: np.zeros((len(index), *shape.shape[1:]), shape.dtype)
            for name, shape in _columns(1, self.length, self.layout.k).items()
        }
        # The first record is the header.
        records = self._reader.read([int(i) + 1 for i in index[real]]) if len(real) else []
        for i, record in zip(real, records, strict=True):
            row = decode(self.layout, record, length=self.length)
            for name, x in zip(found, row, strict=True):
                found[name][i] = x
        return found


def opened(folder: str | os.PathLike[str], about: About) -> Cache:
    """The rows that a `stage` wrote, for a training that wants them to be of `about`.

    UserError, naming what differs and what to do, where the file is of another teacher, other data,
    another tokeniser, vocabulary, k or format, and where it is broken or not there.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    file = Path(folder) / _FILE
    whose = file.parent.parent  # a stage's, where it was a stage that wrote it
    whose = whose if (whose / "artefact.json").is_file() else file.parent
    again = f"remove {whose} to compute it again"
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; {again}")
    try:
        reader = ArrayRecordReader(str(file), _READ)
        header = json.loads(reader.read([0])[0])
        whole = reader.num_records() == header["rows"] + 1
    except Exception as error:  # whatever lies there
        raise UserError(f"{file}: not a file of stored log-probabilities; {again}") from error
    ours, theirs = _header(about), {k: v for k, v in header.items() if k not in _EXTENT}
    if ours != theirs:
        wrong = "; ".join(differences(_short(ours), _short(theirs)))
        raise UserError(f"{file}: stored of something else ({wrong}); {again}")
    if not whole:
        raise UserError(f"{file}: has {reader.num_records() - 1} rows of {header['rows']}; {again}")
    return Cache(reader, about.layout, header["rows"], header["length"])


def joined(source: Source, cache: Cache) -> Source:
    """The source's batches with the `columns` of their rows; a row's `index` is its number.

    A pure function of the step as the source is. ValueError for rows of another length.
    """

    def batches(step: int, rows: slice) -> Batch:
        batch = source(step, rows)
        if batch["inputs"].shape[1] != cache.length:
            raise ValueError(
                f"source: got rows of {batch['inputs'].shape[1]}, takes those of the cache, "
                f"{cache.length}"
            )
        return {**batch, **cache.columns(batch["index"])}

    return batches


def batch_shapes(rows: int, length: int, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `joined`: a text batch and the three columns."""
    return shapes.text(rows, length) | _columns(rows, length, k)


def _columns(rows: int, length: int, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    of = jax.ShapeDtypeStruct
    return {
        "top_k_ids": of((rows, length, k), np.int32),
        "top_k_log_probs": of((rows, length, k), np.float32),
        "top_k_log_tail": of((rows, length), np.float32),
    }


def _header(about: About) -> dict[str, Any]:
    whose = {"teacher": about.teacher, "data": about.data, "tokenizer": about.tokenizer}
    return {"format": VERSION} | whose | about.layout._asdict()


def _short(header: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v[:12] if isinstance(v, str) else v for k, v in header.items()}


def _check_rows(name: str, rows: Mapping[str, Any], length: int) -> None:
    shape = np.shape(rows["weights"])
    if shape[1:] != (length,):
        raise ValueError(f"stage {name}: data has rows of {shape[1:]}, length is {length}")
    if not np.array_equal(rows.get("index", np.arange(shape[0])), np.arange(shape[0])):
        raise ValueError(f"stage {name}: data has an index that is not 0, 1, 2, ...")
