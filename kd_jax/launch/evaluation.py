"""Evaluation over a whole data set, exact whatever the batch size, the mesh and the hosts."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kd_jax.launch.beat import beat
from kd_jax.launch.prefetch import own_rows, place
from kd_jax.launch.sharding import batch_sharding, on_mesh, replicated
from kd_jax.launch.stages import Program
from kd_jax.trees import flatten, map_with_path
from kd_jax.types import Frozen, Output, Params

PyTree = Any
EvalStep = Callable[[Params, PyTree, Frozen, Any], Output]


def evaluate(
    eval_step: EvalStep,
    params: Params,
    carry: PyTree,
    frozen: Frozen,
    examples: Mapping[str, Any],
    *,
    batch_size: int,
    mesh: Mesh,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """(values, rows) of N examples.

    examples: arrays [N, ...] by name, nested mappings included; the same in every process, each of
        which feeds its part. Each mapping of arrays needs "weights"; "index" is its row numbers
        where it has none. The last batch is filled up with copies of row 0 under weight 0 and
        index -1.
    values: "loss" and the value of every term and metric over all examples, from sums in float64.
        The scale of a term must be the same for every batch.
    rows: Output.rows by name, [N, ...], in the order of the examples' index.

    The step is compiled once for each (eval_step, mesh, shapes): keep the same function object.
    """
    examples = _indexed(examples)
    sums = _Sums()
    for output in _outputs(eval_step, params, carry, frozen, examples, batch_size, mesh):
        sums.add(output)
    index = _main_index(examples)
    order = np.argsort(index, kind="stable")
    rows = {name: np.concatenate(x)[: len(index)][order] for name, x in sums.rows.items()}
    return sums.values(), rows


def stream(
    eval_step: EvalStep,
    params: Params,
    carry: PyTree,
    frozen: Frozen,
    examples: Mapping[str, Any],
    *,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of `evaluate` a batch at a time, in the order of the examples, without padding.

    For rows too many to be held at once; terms and metrics are not looked at.
    """
    examples = _indexed(examples)
    left = len(_main_index(examples))
    for output in _outputs(eval_step, params, carry, frozen, examples, batch_size, mesh):
        yield {name: np.asarray(x)[:left] for name, x in jax.device_get(output.rows).items()}
        left -= batch_size


def _outputs(
    eval_step: EvalStep,
    params: Params,
    carry: PyTree,
    frozen: Frozen,
    examples: Mapping[str, Any],
    batch_size: int,
    mesh: Mesh,
) -> Iterator[Output]:
    """The step's output of each batch, the last one filled up."""
    flat = flatten(examples)
    counts = {path: len(x) for path, x in flat.items()}
    total = next(iter(counts.values()))
    if total == 0 or len(set(counts.values())) > 1:
        raise ValueError(f"examples: got {counts} rows, takes the same number, at least 1, of each")
    sharding = batch_sharding(mesh)
    own = own_rows(sharding, batch_size)
    run = _compiled(eval_step, mesh)

    def part(start: int, piece: slice) -> Any:
        wanted = np.arange(start + piece.start, start + piece.stop)
        real = wanted < total
        return map_with_path(lambda path, x: _rows(path, x, wanted, real), examples)

    waiting: Output | None = None
    for start in range(0, total, batch_size):
        # One batch is under way while the one before is fetched.
        batch = place(functools.partial(part, start), sharding, batch_size, own)
        output = run(params, carry, frozen, batch)
        beat()
        if waiting is not None:
            yield waiting
        waiting = output
    if waiting is not None:
        yield waiting


def program(
    eval_step: EvalStep, params: Params, carry: PyTree, frozen: Frozen, batch: PyTree, *, mesh: Mesh
) -> Program:
    """What `evaluate` runs, for a plan; batch: the ShapeDtypeStructs of one global batch."""
    rows = batch_sharding(mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)
    return Program(_compiled(eval_step, mesh), (params, carry, frozen, shapes))


@functools.lru_cache(maxsize=64)
def _compiled(eval_step: EvalStep, mesh: Mesh) -> Any:
    # Replicated outputs: every process gets the rows of all.
    return jax.jit(
        on_mesh(eval_step, mesh),
        in_shardings=(None, None, None, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


class _Sums:
    """Terms added up on the host, in float64."""

    def __init__(self) -> None:
        self._terms: dict[str, list[float]] = {}
        self._losses: set[str] = set()
        self.rows: dict[str, list[np.ndarray]] = {}

    def add(self, output: Output) -> None:
        terms, metrics, rows = jax.device_get((output.terms, output.metrics, output.rows))
        both = (terms.keys() & metrics.keys()) | ({"loss"} & (terms.keys() | metrics.keys()))
        if both:
            raise ValueError(f"metrics: {', '.join(sorted(both))} is taken; give it another name")
        self._losses |= terms.keys()
        for name, term in (terms | metrics).items():
            total, weight, scale = (float(x) for x in term)
            held = self._terms.setdefault(name, [0.0, 0.0, scale])
            if held[2] != scale:
                raise ValueError(
                    f"term {name}: its scale changed from {held[2]} to {scale} between two batches"
                )
            held[0] += total
            held[1] += weight
        for name, x in rows.items():
            self.rows.setdefault(name, []).append(np.asarray(x))

    def values(self) -> dict[str, float]:
        found = {
            name: scale * total / weight if weight else 0.0
            for name, (total, weight, scale) in self._terms.items()
        }
        return {"loss": sum(found[name] for name in self._losses)} | found


def _indexed(examples: Mapping[str, Any]) -> dict[str, Any]:
    """The examples with an index in every mapping of arrays; ValueError for one without weights."""
    inner = {k: _indexed(v) for k, v in examples.items() if isinstance(v, Mapping)}
    own = {k: np.asarray(v) for k, v in examples.items() if not isinstance(v, Mapping)}
    if own:
        if "weights" not in own:
            raise ValueError(f"examples: got {', '.join(own)}; takes weights too, 0 on padding")
        own.setdefault("index", np.arange(len(own["weights"]), dtype=np.int32))
    return own | inner


def _main_index(examples: Mapping[str, Any]) -> np.ndarray:
    """The outermost index: the one of the examples, or of the first mapping in them."""
    if "index" in examples:
        return examples["index"]
    return _main_index(next(iter(examples.values())))


def _rows(path: str, x: np.ndarray, wanted: np.ndarray, real: np.ndarray) -> np.ndarray:
    rows = x[np.where(real, wanted, 0)]
    fill = {"index": -1, "weights": 0}.get(path.split("/")[-1])
    if fill is not None:
        rows[~real] = fill
    return rows
