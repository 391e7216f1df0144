"""Linear CKA: how alike two networks' hidden layers are."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import Classifier, classifier, depths
from kd_jax.launch import evaluation
from kd_jax.launch.config import identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Program, Stage, materialise, shapes_on
from kd_jax.types import Output

PyTree = Any
Found = Mapping[str, Any]


def gram(features: np.ndarray) -> np.ndarray:
    """X X^T without its diagonal, X [N, ...] flattened: f64 [N, N]."""
    x = features.reshape(len(features), -1).astype(np.float64)
    found = (x - x.mean(0)) @ (x - x.mean(0)).T
    np.fill_diagonal(found, 0.0)
    return found


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of HSIC from two `gram`s [N, N], N of 4 or more.

    [tr(X Y) + 1'X1 1'Y1 / ((N - 1)(N - 2)) - 2 / (N - 2) 1'X Y 1] / (N (N - 3)), diagonals 0: Song
    et al. 2012, equation 5 (number UNVERIFIED).
    """
    n = len(x)
    if n < 4:
        raise ValueError(f"x: got {n} examples, takes at least 4")
    rows = x.sum(0) @ y.sum(0)
    total = (x * y).sum() + x.sum() * y.sum() / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
    return float(total / (n * (n - 3)))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) of two `gram`s, unbiased in each: at most 1.

    Around 0 where layers have nothing in common, also where they are wider than there are examples.
    Kornblith et al. 2019, arXiv 1905.00414; Nguyen et al. 2021, arXiv 2010.15327.
    """
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def stage(
    config: pupils.Schooling,
    teachers: Mapping[str, Classifier],
    students: Mapping[str, Classifier],
    images: int,
) -> Stage:
    """The stage "similarity": CKA of all stages of students and teachers, on test images.

    teachers, students: networks of stages of `pupils.teacher` and `pupils.students`. rows:
    "<students>/<teacher>" [S, layers, layers].
    """
    networks = {**teachers, **students}

    def build(found: Found) -> Compute:
        held = {name: found[name].weights() for name in networks}

        def grams(name: str, mesh: Mesh) -> list[list[np.ndarray]]:
            """Of each model of a stage, of each layer."""
            tree = materialise(held[name], mesh)
            examples = _first(config, images)
            result = []
            for params, state in _models(tree, lambda x, i: x[i]):
                _, rows = evaluation.evaluate(
                    _step(networks[name], config.pictures.fold), params, state, {}, examples,
                    batch_size=config.score_batch, mesh=mesh,
                )  # fmt: skip
                result.append([gram(rows[tap]) for tap in depths(networks[name])])
            return result

        def run() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            theirs = {name: grams(name, mesh)[0] for name in teachers}
            found = {}
            for name in students:
                ours = grams(name, mesh)
                for teacher, layers in theirs.items():
                    found[f"{name}/{teacher}"] = np.array(
                        [[[linear_cka(x, y) for y in layers] for x in one] for one in ours]
                    )
            return None, found

        def plan(mesh: Mesh) -> Mapping[str, Program]:
            batch = pupils.batch_shapes(config, config.score_batch)
            programs = {}
            for name, network in networks.items():
                params, state = _models(shapes_on(held[name], mesh), _shape_of_one)[0]
                programs[name] = evaluation.program(
                    _step(network, config.pictures.fold), params, state, {}, batch, mesh=mesh
                )
            return programs

        return Compute(run, plan=plan)

    depends = {"images": images, "pictures": identity(config.pictures)}
    return Stage("similarity", build, tuple(networks), depends)


def _first(config: pupils.Schooling, images: int) -> dict[str, np.ndarray]:
    test = pictures_lib.load(config.pictures).test
    return pictures_lib.part(test, np.arange(min(images, len(test["index"]))))


def _models(
    tree: Mapping[str, PyTree], one: Callable[[Any, int], Any]
) -> list[tuple[PyTree, PyTree]]:
    """(parameters, statistics) of each model of an artefact."""
    if "teacher" in tree:
        return [(tree["teacher"], tree.get("teacher_state", {}))]
    count = jax.tree.leaves(tree["model"])[0].shape[0]

    def model(i: int) -> tuple[PyTree, PyTree]:
        both = tree["model"], tree.get("state", {})
        params, state = jax.tree.map(lambda x: one(x, i), both)
        return params, state

    return [model(i) for i in range(count)]


def _shape_of_one(x: jax.ShapeDtypeStruct, _: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=x.sharding)


@functools.cache  # one for all students of a family
def _step(network: Classifier, fold: int) -> evaluation.EvalStep:
    model, taps = classifier(network, fold), depths(network)

    def step(params: PyTree, state: PyTree, frozen: PyTree, batch: Any) -> Output:
        found = model.apply(params, batch, state=state, taps=taps).taps
        return Output({}, {}, {tap: found[tap].astype(jnp.float32) for tap in taps})

    return step
