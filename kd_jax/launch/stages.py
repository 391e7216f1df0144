"""Stages: the parts of an experiment that are made once, kept as artefacts, resumed and planned."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import digest
from kd_jax.launch.errors import UserError
from kd_jax.launch.sharding import (
    TABLE,
    Rules,
    batch_sharding,
    batch_ways,
    on_host,
    shard_tree,
    with_shardings,
)
from kd_jax.launch.weights import Weights, abstract_state
from kd_jax.steps import guard_non_finite
from kd_jax.types import Batch, Frozen, Params, TrainState, TrainStep

PyTree = Any
REPLICATED: Rules = ((".*", ()),)  # every leaf on every device


class Program(NamedTuple):
    """A function that a stage jits, and what it takes as ShapeDtypeStructs that carry shardings."""

    jitted: Any
    arguments: tuple[PyTree, ...]


def _no_programs(*_: Any) -> Mapping[str, Program]:
    return {}


class Evaluation(NamedTuple):
    """What is measured along a training: at step 0, each `every` steps and at the end.

    run(params, carry, frozen) -> {name: number or array}. Numbers go to metrics.jsonl, all of it
    to the artefact: history and rows.
    plan(params, carry, frozen) -> {name: Program}: what `run` compiles; it is given shapes that
    carry shardings.
    """

    name: str
    every: int
    run: Callable[[Params, PyTree, Frozen], Mapping[str, float | np.ndarray]]
    plan: Callable[[Params, PyTree, Frozen], Mapping[str, Program]] = _no_programs


def model_of(state: TrainState, frozen: Frozen) -> PyTree:
    """The default result of a training: the model's parameters."""
    return state.params["model"]


class Training(NamedTuple):
    """A training run as data.

    step: the step, not yet guarded or jitted. weights: the model's part of params. frozen: the
    mapping of what is read and not trained (`weights.joined(reference=..., mask=...)`), or None.
    batches(step, rows): this process's rows of the global batch, numpy arrays. batch: the shapes
    of one global batch. rules: (path pattern, logical axis names) for the model's part of params;
    frozen_rules: the same for each entry of frozen, `rules` where it is not named; extra_rules: for
    paths "aux/...", "carry/..." and "opt_state/..." that should not replicate.
    prepare(state, frozen, batch) -> batch, every `prepare_every` steps, or None.
    start: a state to go on from instead of a fresh one, what `rounds.whole` kept of an earlier
    training with the same step; its finished steps are among `steps`, and of `weights` only the
    shapes are read.
    result(state, frozen) -> what the artefact keeps (jitted), or None for nothing.
    host: entries of frozen whose matrices stay in the host's memory; a model fetches each layer as
        it is used (`models.parts.fetched`). Vectors stay on the device: they are small, and the
        TPU's compiler refuses to slice packed ones in the host's memory.
    """

    step: TrainStep
    weights: Weights
    batches: Callable[[int, slice], Batch]
    batch: PyTree
    batch_size: int
    steps: int
    rules: Rules
    frozen: Weights | None = None
    frozen_rules: Mapping[str, Rules] = {}
    extra_rules: Rules = ()
    start: Weights | None = None
    seed: int = 0
    evaluations: Sequence[Evaluation] = ()
    prepare: Callable[[TrainState, Frozen, Batch], Batch] | None = None
    prepare_every: int = 1
    result: Callable[[TrainState, Frozen], PyTree] = model_of
    host: Sequence[str] = ()


class Compute(NamedTuple):
    """A merge, a score, an evaluation pass: run() -> (tree of arrays or None, values).

    values: plain numbers, and arrays, which become the artefact's rows. Only a plan needs the
    rest: shapes of the tree, where a later stage starts from it; plan(mesh) -> {name: Program},
    what `run` compiles.
    files(folder) -> more values: writes what is too large for rows, or read elsewhere, into the
    folder, which is empty and becomes the artefact's `files`; called after run, in every process.
    """

    run: Callable[[], tuple[PyTree | None, Mapping[str, Any]]]
    shapes: PyTree = None
    plan: Callable[[Mesh], Mapping[str, Program]] = _no_programs
    files: Callable[[Path], Mapping[str, Any]] | None = None


class Stage(NamedTuple):
    """One part of an experiment.

    build(artefacts) -> Training or Compute; `artefacts` has the entries of `needs`, finished. It
    reads shapes only where it can (`Artefact.weights()`): a plan calls it with planned artefacts.
    depends: plain data that the result depends on besides its needs; None for the whole identity of
    the config. Name less and the artefact is shared by more runs: a pretrained model is made once.
    """

    name: str
    build: Callable[[Mapping[str, Artefact]], Training | Compute]
    needs: tuple[str, ...] = ()
    depends: Any = None


def keys(stages: Sequence[Stage], module: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """{name: hash of all that the stage's result depends on}.

    ValueError for a name given twice, a name that is no plain word, and a need that is not the
    name of an earlier stage.
    """
    found: dict[str, str] = {}
    for stage in stages:
        if stage.name in found:
            raise ValueError(f"stage {stage.name}: the name is given twice")
        if not stage.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"stage {stage.name!r}: takes letters, digits, - and _")
        unknown = [need for need in stage.needs if need not in found]
        if unknown:
            raise ValueError(
                f"stage {stage.name} needs {', '.join(unknown)}; the stages before it are "
                f"{', '.join(found) or 'none'}"
            )
        found[stage.name] = digest(
            {
                "module": module,
                "name": stage.name,
                "depends": depends_on(stage, identity),
                "needs": [found[need] for need in stage.needs],
            }
        )
    return found


def depends_on(stage: Stage, identity: Mapping[str, Any]) -> Any:
    return identity if stage.depends is None else stage.depends


class Placed(NamedTuple):
    """A training's guarded step and the shapes of all that it takes, with their shardings."""

    step: TrainStep
    state: TrainState
    frozen: Frozen
    batch: PyTree


def placed(name: str, training: Training, mesh: Mesh) -> Placed:
    """What is run, and what is planned; no array is made.

    Raises ValueError for a training that contradicts itself, UserError where the mesh does not
    divide it.
    """
    _check(name, training)
    if training.batch_size % batch_ways(mesh):
        over = " * ".join(f"--mesh.{axis} {mesh.shape[axis]}" for axis in TABLE["batch"])
        raise UserError(
            f"stage {name}: batch size {training.batch_size} does not divide over {over}"
        )
    step = guard_non_finite(training.step)
    shapes = _frozen_shapes(training)
    frozen = {
        key: with_shardings(
            part, shard_tree(part, training.frozen_rules.get(key, training.rules), mesh)
        )
        for key, part in shapes.items()
    }
    for key in training.host:
        frozen[key] = on_host(frozen[key])
    rows = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), training.batch
    )
    state = abstract_state(
        step,
        training.weights,
        shapes,
        training.batch,
        rules=training.rules,
        mesh=mesh,
        extra=training.extra_rules,
    )
    return Placed(step, state, frozen, batch)


def inner(state: TrainState) -> TrainState:
    """The state of the step as the experiment made it, without the guard's."""
    return state._replace(carry=state.carry["inner"])


def shapes_on(weights: Weights, mesh: Mesh, rules: Rules = REPLICATED) -> PyTree:
    """What `materialise` makes, as ShapeDtypeStructs: for the `plan` of a Compute."""
    return with_shardings(weights.abstract, shard_tree(weights.abstract, rules, mesh))


def materialise(weights: Weights, mesh: Mesh, rules: Rules = REPLICATED) -> PyTree:
    """The arrays of `weights` on the mesh: for the `run` of a Compute."""
    return weights.make(shapes_on(weights, mesh, rules))


def mesh_of(tree: PyTree) -> Mesh:
    """The mesh that a tree of arrays lies on: for evaluations, which are given params."""
    return jax.tree.leaves(tree)[0].sharding.mesh


def _frozen_shapes(training: Training) -> Mapping[str, Any]:
    return {} if training.frozen is None else training.frozen.abstract


def _check(name: str, training: Training) -> None:
    """ValueError where batch, batch_size, steps or evaluations of a training contradict."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(training.batch):
        if leaf.shape[0] != training.batch_size:
            raise ValueError(
                f"stage {name}: batch{jax.tree_util.keystr(path)} has {leaf.shape[0]} rows, "
                f"batch_size is {training.batch_size}"
            )
    if training.steps < 1:
        raise ValueError(f"stage {name}: steps: got {training.steps}, takes at least 1")
    names = [e.name for e in training.evaluations]
    if len(set(names)) < len(names):
        raise ValueError(f"stage {name}: evaluations share a name: {', '.join(names)}")
    for e in training.evaluations:
        if e.every < 1 or not e.name or "/" in e.name:
            raise ValueError(
                f"stage {name}: evaluation {e.name!r} every {e.every}: takes a name without / and "
                "at least 1"
            )
    for field in ("frozen_rules", "host"):
        unknown = set(getattr(training, field)) - set(_frozen_shapes(training))
        if unknown:
            raise ValueError(
                f"stage {name}: {field} names {', '.join(sorted(unknown))}, not in frozen"
            )
