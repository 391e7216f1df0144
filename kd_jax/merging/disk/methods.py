"""The methods by mergekit's names, and those that are not sums of task vectors.

Each takes a tensor's `Task` and writes its blocks. Defaults are mergekit's (merge_methods/).
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kd_jax.merging import formulas
from kd_jax.merging.disk import sparsify
from kd_jax.merging.disk.blocks import Work, spans
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.parameters import Value
from kd_jax.merging.disk.sparsify import Sparse
from kd_jax.merging.disk.task import Task
from kd_jax.merging.disk.task_vectors import merge_task_vectors


def linear(task: Task, work: Work) -> None:
    """sum_n w_n theta_n, divided by the sum of the weights with `normalize`."""
    weights = np.asarray([part.parameters["weight"] for part in task.parts], np.float32)
    if task.parameters["normalize"]:
        total = weights.sum()
        if total == 0.0:
            raise MergeError(f"weight: those of {task.name} add up to 0; say normalize: false")
        weights = weights / total
    for start, stop in spans(task.size):
        out = work.buffer("total", stop - start)
        for n, part in enumerate(task.parts):
            x = work.read("x", part.tensor, start, stop)
            np.multiply(x, weights[n], out=x if n else out)
            if n:
                np.add(out, x, out=out)
        work.write(start, out)


def slerp(task: Task, work: Work) -> None:
    """From the base (t = 0) to the other model (1), the tensor taken as one vector."""
    _interpolate(task, work, float(task.parameters["t"]), parallel=0.9995)


def nuslerp(task: Task, work: Work) -> None:
    """SLERP of two models, or of their task vectors if there is a base, t = w_2 / (w_1 + w_2)."""
    first, second = (float(part.parameters["weight"]) for part in task.parts)
    together = first + second
    t = second / together if abs(together) >= 1e-6 else 0.5
    # mergekit takes the straight line where |sin theta| < 1e-8, in float32: at parallel vectors.
    _interpolate(task, work, t, parallel=1.0 - 1e-7)


def _interpolate(task: Task, work: Work, t: float, *, parallel: float) -> None:
    products = _inner_products(task, work)
    cosine = formulas.cosine(products[0, 1], products[0, 0], products[1, 1])
    first, second = formulas.slerp(np.clip(cosine, -1.0, 1.0), t, parallel=parallel)
    for start, stop in spans(task.size):
        base = _base(task, work, start, stop)
        out = work.buffer("total", stop - start)
        np.multiply(_vector(task, work, 0, base, start, stop), np.float32(first), out=out)
        x = _vector(task, work, 1, base, start, stop)
        np.add(out, np.multiply(x, np.float32(second), out=x), out=out)
        work.write(start, out if base is None else np.add(out, base, out=out))


def model_stock(task: Task, work: Work) -> None:
    """Between the base and the mean of the others, by the angles between their task vectors."""
    n = len(task.parts)
    products = _inner_products(task, work)
    pairs = list(itertools.combinations(range(n), 2))
    cosines = [
        np.clip(formulas.cosine(products[i, j], products[i, i], products[j, j]), -1.0, 1.0)
        for i, j in pairs
    ]
    ratio = float(formulas.stock_ratio(np.asarray(np.mean(cosines)), n))
    for start, stop in spans(task.size):
        base = _base(task, work, start, stop)
        assert base is not None
        out = work.buffer("total", stop - start)
        out.fill(0.0)
        for i in range(n):
            np.add(out, _vector(task, work, i, base, start, stop), out=out)
        np.multiply(out, np.float32(ratio / n), out=out)
        work.write(start, np.add(out, base, out=out))


def _base(task: Task, work: Work, start: int, stop: int) -> np.ndarray | None:
    return None if task.base is None else work.read("base", task.base, start, stop)


def _vector(
    task: Task, work: Work, n: int, base: np.ndarray | None, start: int, stop: int
) -> np.ndarray:
    """A block of model n, of its task vector if there is a base."""
    x = work.read(n, task.parts[n].tensor, start, stop)
    return x if base is None else np.subtract(x, base, out=x)


def _inner_products(task: Task, work: Work) -> np.ndarray:
    """[N, N] between all vectors, f64: blocks in float32, their sums in float64."""
    n = len(task.parts)
    products = np.zeros((n, n))
    for start, stop in spans(task.size):
        base = _base(task, work, start, stop)
        vectors = [_vector(task, work, i, base, start, stop) for i in range(n)]
        for i, j in itertools.combinations_with_replacement(range(n), 2):
            products[i, j] += np.dot(vectors[i], vectors[j])
    return products


def passthrough(task: Task, work: Work) -> None:
    """The one model's tensor, times `scale`."""
    (part,) = task.parts
    for start, stop in spans(task.size):
        x = work.read("x", part.tensor, start, stop)
        work.write(start, np.multiply(x, np.float32(part.parameters["scale"]), out=x))


def copy(task: Task, work: Work) -> None:
    """The one model's tensor as it is, whatever its dtype."""
    (part,) = task.parts
    for start, stop in spans(task.size):
        work.write(start, work.read_as_it_is(part.tensor, start, stop))


Merge = Callable[[Task, Work], None]
NEEDED = None  # the default of a parameter that must be given


class Method(NamedTuple):
    """whole, each: parameters of a tensor and of each model's, with defaults.

    base: "needed", "allowed" (nuslerp), "first" (slerp: a model that interpolation starts from) or
    "plain" (a model among the others). models: how many besides the base, at least and at most.
    """

    merge: Merge
    base: str
    whole: Mapping[str, Value | None] = {}
    each: Mapping[str, Value | None] = {}
    models: tuple[int, float] = (1, float("inf"))


def _of_task_vectors(
    sparse: Sparse | None = None,
    *,
    vote: bool = False,
    normalize: bool = False,
    rescale: bool = False,
    more: Mapping[str, Value] = {},
) -> Method:
    return Method(
        functools.partial(merge_task_vectors, sparse=sparse, vote=vote),
        base="needed",
        whole={"normalize": normalize, "rescale": rescale, "lambda": 1.0},
        each={"weight": NEEDED, "density": 1.0, **more},
    )


_LARGEST = Sparse(sparsify.trimmed)
_MIDDLE = Sparse(sparsify.without_outliers)
_RANDOM = Sparse(sparsify.dropped)
_RANKED = Sparse(sparsify.dropped_by_rank, whole_rows=True)
_GAMMA, _EPSILON = {"gamma": 0.01}, {"epsilon": 0.15}

_WHOLE_VECTORS = {"nuslerp_flatten": True, "nuslerp_row_wise": False}
# Of mergekit's, with the only value that is supported.
FIXED: dict[str, Value] = {**_WHOLE_VECTORS, "filter_wise": False}
# Of mergekit's, that say how it computes and not what.
WITHOUT_EFFECT = {"int8_mask"}

METHODS: dict[str, Method] = {
    "linear": Method(linear, "plain", {"normalize": True}, {"weight": NEEDED}),
    "slerp": Method(slerp, "first", {"t": NEEDED}, models=(1, 1)),
    "nuslerp": Method(nuslerp, "allowed", _WHOLE_VECTORS, {"weight": NEEDED}, models=(2, 2)),
    "model_stock": Method(model_stock, "needed", {"filter_wise": False}, models=(2, float("inf"))),
    "passthrough": Method(passthrough, "plain", each={"scale": 1.0}, models=(1, 1)),
    "task_arithmetic": _of_task_vectors(),
    "ties": _of_task_vectors(_LARGEST, vote=True, normalize=True),
    "dare_linear": _of_task_vectors(_RANDOM, rescale=True),
    "dare_ties": _of_task_vectors(_RANDOM, vote=True, rescale=True),
    "della": _of_task_vectors(_RANKED, vote=True, normalize=True, rescale=True, more=_EPSILON),
    "della_linear": _of_task_vectors(_RANKED, rescale=True, more=_EPSILON),
    "breadcrumbs": _of_task_vectors(_MIDDLE, more=_GAMMA),
    "breadcrumbs_ties": _of_task_vectors(_MIDDLE, vote=True, more=_GAMMA),
}
