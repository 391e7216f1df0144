"""A teacher's outputs for images, stored once for each augmented view and then trained on.

A stage runs the teacher on every image as every one of a few augmentation seeds changes it, and
writes its logits and taps, one .npy a column [views, N, ...], beside a header that says which
teacher, data and augmentation they are of. Whoever trains on them says what they are to be of;
where something differs they are refused. The teacher itself is not loaded again:

    cache = output_cache.opened(found["outputs"].files, about)
    source = output_cache.joined(sources.array_batches(images, ...), cache, batch_size=64)
    Training(make_train_step(distil(student, stored_teacher(), parts, teacher_policy=nothing)), ...,
        prepare=as_stored(augment))

Files are mapped, not read: a batch costs the bytes of its own rows.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kd_jax.data.sources import Batch, Source
from kd_jax.launch import evaluation, runtime
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import differences, plain
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.precompute import data_hash
from kd_jax.launch.sharding import Rules
from kd_jax.launch.stages import REPLICATED, Compute, Program, Stage, materialise, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.objectives.augment.images import Augment
from kd_jax.objectives.augment.prepare import view_of
from kd_jax.objectives.stored import columns_of
from kd_jax.types import Model, Output

Found = Mapping[str, Artefact]

_HEADER = "outputs.json"
_VERSION = 1


class About(NamedTuple):
    """What stored outputs are of.

    teacher, data: `precompute.model_hash`, and `precompute.data_hash` of the images. taps: what is
    stored besides the logits. augmentation: plain data that names the change of images and all of
    its settings, None where there is none. views: its seeds.
    """

    teacher: str
    data: str
    taps: tuple[str, ...] = ()
    augmentation: Any = None
    views: tuple[int, ...] = (0,)


def stage(
    name: str,
    *,
    model: Model,
    weights: Callable[[Found], Weights],
    teacher: Callable[[Found], str],
    data: Callable[[], Mapping[str, Any]],
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: MeshConfig,
    taps: Sequence[str] = (),
    augment: Augment | None = None,
    augmentation: Any = None,
    views: Sequence[int] = (0,),
    rules: Rules = REPLICATED,
    needs: tuple[str, ...] = (),
    depends: Any = None,
) -> Stage:
    """A stage that runs a teacher once a view; `opened` reads the `files` of its artefact.

    weights(artefacts): {"teacher": parameters, "teacher_state": its statistics, {} for none},
    placed by rules; teacher(artefacts) -> its `precompute.model_hash`. data() -> an image batch of
    all images, loaded when the stage runs; image i has the index i. batch: the shapes of what is
    run at once. augment, views: image i of view v is changed with the key fold_in(key(v), i).

    Values of the artefact: bytes of the files, "images" stored in all.
    """
    step = _step(model, tuple(taps), augment)
    rows = batch["index"].shape[0]

    def build(found: Found) -> Compute:
        def files(folder: Path) -> Mapping[str, Any]:
            images, where = data(), make_mesh(mesh)
            about = About(
                teacher(found), data_hash(images), tuple(taps), augmentation, tuple(views)
            )
            frozen = materialise(weights(found), where, rules)

            def scored(view: int) -> Iterable[Mapping[str, np.ndarray]]:
                seen = {**images, "view": np.full(len(images["index"]), view, np.int32)}
                return evaluation.stream(step, {}, {}, frozen, seen, batch_size=rows, mesh=where)

            return write(folder, about, [scored(view) for view in views], len(images["index"]))

        def plan(where: Mesh) -> Mapping[str, Program]:
            frozen = shapes_on(weights(found), where, rules)
            viewed = {**batch, "view": jax.ShapeDtypeStruct((rows,), np.int32)}
            return {"outputs": evaluation.program(step, {}, {}, frozen, viewed, mesh=where)}

        return Compute(lambda: (None, {}), plan=plan, files=files)

    return Stage(name, build, needs, depends)


def write(
    folder: Path, about: About, scored: Sequence[Iterable[Mapping[str, np.ndarray]]], images: int
) -> dict[str, float]:
    """Writes the columns of every view, batch after batch; returns `stage`'s values.

    Every process calls it with the same rows, and process 0 writes. The header comes last, so that
    what a kill leaves is not taken for whole.
    """
    files: dict[str, np.memmap] = {}

    def put(view: int, start: int, columns: Mapping[str, np.ndarray]) -> None:
        for name, x in columns.items():
            if name not in files:
                shape = (len(about.views), images, *x.shape[1:])
                files[name] = np.lib.format.open_memmap(_file(folder, name), "w+", x.dtype, shape)
            files[name][view, start : start + len(x)] = x

    for view, batches in enumerate(scored):
        done = 0
        for columns in batches:
            runtime.on_main(lambda view=view, done=done, columns=columns: put(view, done, columns))
            done += len(next(iter(columns.values())))
        if done != images:
            raise ValueError(f"scored: got {done} rows, takes one for each of {images} images")

    def end() -> int:
        for x in files.values():
            x.flush()
        header = _described(about) | {"columns": sorted(files), "images": images}
        (Path(folder) / _HEADER).write_text(json.dumps(header))
        return sum(x.nbytes for x in files.values())

    size = runtime.on_main(end) or 0
    return {"bytes": size, "images": images * len(about.views)}


class Cache:
    """Stored outputs by image and view."""

    def __init__(self, columns: Mapping[str, np.ndarray], views: tuple[int, ...], images: int):
        self._columns = columns
        self.views = views
        self.images = images

    def columns(self, index: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
        """{"teacher_logits": [B, C], "teacher_<tap>": [B, ...]} of images [B] in views [B].

        places: places in `views`. Zeros for the number -1, of padding.
        """
        index = np.asarray(index)
        found = {name: x[places, np.maximum(index, 0)] for name, x in self._columns.items()}
        for x in found.values():
            x[index < 0] = 0
        return found


def shapes(
    model: Model, batch: Mapping[str, jax.ShapeDtypeStruct], taps: Sequence[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """What `joined` adds to a batch of these shapes, of a teacher of this model."""
    rows = batch["index"].shape[0]
    viewed = {**batch, "view": jax.ShapeDtypeStruct((rows,), np.int32)}
    frozen = jax.eval_shape(
        lambda: {"teacher": model.init(jax.random.key(0)), "teacher_state": model.state()}
    )
    found = jax.eval_shape(_step(model, tuple(taps), None), {}, {}, frozen, viewed)
    return {"view": viewed["view"], **found.rows}


def opened(
    folder: str | os.PathLike[str], about: About, *, only: Sequence[str] | None = None
) -> Cache:
    """What a `stage` wrote, for a training that wants it to be of `about`.

    only: the taps that are wanted, by default all of them. UserError, naming what differs and what
    to do, where the files are of another teacher, other data, another augmentation, views or taps,
    and where they are broken or not there.
    """
    folder = Path(folder)
    whose = folder.parent if (folder.parent / "artefact.json").is_file() else folder
    again = f"remove {whose} to compute it again"
    try:
        header = json.loads((folder / _HEADER).read_text())
        held = {name: np.load(_file(folder, name), mmap_mode="r") for name in header["columns"]}
        views, images = header["views"], header["images"]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: there is no such file; {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a folder of stored outputs ({error}); {again}") from None
    ours = _described(about)
    wrong = differences(ours, {name: header.get(name, "absent") for name in ours})
    if wrong:
        raise UserError(f"{folder}: stored of something else ({'; '.join(wrong)}); {again}")
    if any(x.shape[:2] != (len(views), images) for x in held.values()):
        raise UserError(f"{folder}: its files are of different sizes; {again}")
    wanted = columns_of(about.taps if only is None else only)
    return Cache({name: held[name] for name in wanted}, tuple(views), images)


def joined(source: Source, cache: Cache, *, batch_size: int) -> Source:
    """The source's batches with the `columns` of their rows, and "view" i32 [B], a seed.

    An image's view changes from epoch to epoch, in the order of the cache's views and then from the
    first again. A pure function of the step as the source is. batch_size: of the global batch.
    """

    def batches(step: int, rows: slice) -> Batch:
        batch = source(step, rows)
        positions = step * batch_size + np.arange(*rows.indices(batch_size))
        places = positions // cache.images % len(cache.views)
        view = np.asarray(cache.views, np.int32)[places]
        return {**batch, "view": view, **cache.columns(batch["index"], places)}

    return batches


def _step(model: Model, taps: tuple[str, ...], augment: Augment | None) -> evaluation.EvalStep:
    def run(params: Any, carry: Any, frozen: Any, batch: Any) -> Output:
        seen = batch if augment is None else view_of(augment, batch)
        state = frozen.get("teacher_state", {})
        found = model.apply(frozen["teacher"], seen, state=state, taps=taps)
        columns = {"logits": found.head.logits(), **{name: found.taps[name] for name in taps}}
        return Output({}, {}, {f"teacher_{n}": x.astype(jnp.float32) for n, x in columns.items()})

    return run


def _described(about: About) -> dict[str, Any]:
    return plain(about._asdict() | {"version": _VERSION})


def _file(folder: Path, column: str) -> Path:
    return Path(folder) / f"{column.replace('/', '.')}.npy"
