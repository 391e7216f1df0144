"""From a recipe and its models to what is done to each tensor of the output."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.formats.tensors import LazyTensor
from kd_jax.merging.disk import layout, methods, names
from kd_jax.merging.disk.blocks import FLOATS, is_float
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.inputs import Model
from kd_jax.merging.disk.layout import Wanted
from kd_jax.merging.disk.methods import FIXED, METHODS, WITHOUT_EFFECT
from kd_jax.merging.disk.parameters import Value, resolve
from kd_jax.merging.disk.recipe import Recipe, Slice, Source
from kd_jax.merging.disk.task import Part, Task

_SHARES = ("density", "gamma")  # parameters in [0, 1]


class Plan(NamedTuple):
    """tasks: in the order of the output. donor: the model whose config and tokeniser go along.

    changes: keys of its config.json that the merge changes. notes: what the recipe says that has
    no effect, and what was done about tensors that not all models have.
    """

    tasks: tuple[Task, ...]
    donor: Model
    changes: dict[str, int | bool]
    notes: tuple[str, ...]


class _Found(NamedTuple):
    """A model's tensor that goes into an output tensor."""

    source: Source
    name: str
    tensor: LazyTensor


def make_plan(recipe: Recipe, models: Mapping[str, Model]) -> Plan:
    """MergeError for what does not fit together; nothing but headers is read."""
    slices = [_with_base(recipe, piece, f"slices[{i}]") for i, piece in enumerate(recipe.slices)]
    notes = _check_parameters(recipe)
    places = layout.stacked(slices, models) if recipe.stacked else layout.whole(slices[0], models)
    tasks = []
    for piece, wanted in places:
        found = _find(recipe, piece, wanted, models, notes)
        if len(found) < len(piece.sources) or not is_float(found[0].tensor.dtype):
            tasks.append(_copied(recipe, wanted, found[0]))
        else:
            tasks.append(_merged(recipe, piece, wanted, found))
    donor = models[recipe.base or slices[0].sources[0].model]
    return Plan(tuple(tasks), donor, _changes(recipe, slices, donor, tasks), tuple(notes))


def _with_base(recipe: Recipe, piece: Slice, where: str) -> Slice:
    """The slice with its base, which mergekit adds to the models when it is not among them."""
    method, base = METHODS[recipe.method], piece.base or recipe.base
    if base is None and method.base in ("needed", "first"):
        raise MergeError(f"base_model: {recipe.method} needs one")
    sources = piece.sources
    if base and base not in [source.model for source in sources]:
        if not recipe.stacked:
            sources = (*sources, Source(base, None, {}))
        elif method.base != "plain":
            raise MergeError(f"{where}.sources: lacks the base model {base} and its layer_range")
    others = len(sources) - (base is not None and method.base != "plain")
    least, most = method.models
    if not least <= others <= most:
        takes = f"{least}" if least == most else f"at least {least}"
        beside = " besides the base" if method.base != "plain" and base else ""
        raise MergeError(f"{recipe.method}: got {others} models{beside}, takes {takes}")
    return Slice(sources, base, piece.parameters)


def _check_parameters(recipe: Recipe) -> list[str]:
    """Notes on parameters that this method does not read; MergeError for unknown ones."""
    method = METHODS[recipe.method]
    known = {name for m in METHODS.values() for name in (*m.whole, *m.each)} | WITHOUT_EFFECT
    sources = [source for piece in recipe.slices for source in piece.sources]
    levels = [recipe.parameters] + [piece.parameters for piece in recipe.slices]
    levels += [source.parameters for source in sources]
    given = dict.fromkeys(name for level in levels for name in level)
    for name in given:
        if name not in known:
            raise MergeError(f"parameters: unknown {name!r}, takes {', '.join(sorted(known))}")
    if recipe.flat and recipe.method != "ties":
        raise MergeError(f"threshold: flat is for ties, not for {recipe.method}")
    notes = [
        f"{name} has no effect on {recipe.method}"
        for name in given
        if name not in method.whole and name not in method.each
    ]
    for source in sources:
        notes += [
            f"{name} of {source.model} has no effect: give it for all models, under parameters"
            for name in source.parameters
            if name in method.whole
        ]
    return notes


def _find(
    recipe: Recipe, piece: Slice, wanted: Wanted, models: Mapping[str, Model], notes: list[str]
) -> list[_Found]:
    """The tensors that go into one of the output, the base's first; of one model at least."""
    found, lacking = [], []
    for source, name in zip(piece.sources, wanted.inputs, strict=True):
        tensor = layout.find(models[source.model], name)
        if tensor is None:
            lacking.append(f"{source.model} lacks {name}")
        else:
            found.append(_Found(source, name, tensor))
            if tensor.name != name:
                notes.append(f"{name} of {source.model} is tied to {tensor.name}")
    if METHODS[recipe.method].base != "plain":
        found.sort(key=lambda one: one.source.model != piece.base)
    if lacking and (recipe.missing != "copy" or not found):
        raise MergeError(f"{'; '.join(lacking)}; say missing: copy to copy such tensors")
    if lacking:
        notes.append(f"{wanted.name} is copied from {found[0].source.model}: {'; '.join(lacking)}")
    return found


def _copied(recipe: Recipe, wanted: Wanted, one: _Found) -> Task:
    """The tensor of one model, in the dtype of the output if it is floating."""
    tensor = one.tensor
    dtype = _dtype(recipe, wanted.name, [one]) if is_float(tensor.dtype) else tensor.dtype
    part = Part(one.source.model, tensor, {"scale": 1.0})
    merge = methods.copy if dtype == tensor.dtype else methods.passthrough
    return Task(wanted.name, dtype, tensor.shape, merge, None, (part,), {})


def _merged(recipe: Recipe, piece: Slice, wanted: Wanted, found: Sequence[_Found]) -> Task:
    method = METHODS[recipe.method]
    whole = {
        name: _value(recipe, name, default, (piece.parameters, recipe.parameters), wanted, "")
        for name, default in method.whole.items()
    }
    has_base = method.base in ("needed", "allowed") and piece.base is not None
    parts = []
    for source, name, tensor in found[1:] if has_base else found:
        levels = (source.parameters, piece.parameters, recipe.parameters)
        place = wanted._replace(name=name)
        values = {
            key: _value(recipe, key, default, levels, place, f" of {source.model}")
            for key, default in method.each.items()
        }
        parts.append(Part(source.model, tensor, values))
    dtype = _dtype(recipe, wanted.name, found)
    shape = _shape(recipe, wanted.name, found)
    merge = method.merge
    if recipe.method == "passthrough" and parts[0].parameters["scale"] == 1.0:
        return _copied(recipe, wanted, found[0])
    base = found[0].tensor if has_base else None
    return Task(wanted.name, dtype, shape, merge, base, tuple(parts), whole, recipe.seed)


def _value(
    recipe: Recipe, name: str, default: Value | None, levels: Any, wanted: Wanted, whose: str
) -> Value:
    value = resolve(name, levels, wanted.name, wanted.depth)
    if value is None:
        value = default
    if value is None:
        raise MergeError(f"{name}: {recipe.method} needs it for {wanted.name}{whose}")
    if name in FIXED and value != FIXED[name]:
        raise MergeError(f"{name}: {value} is not supported, takes {FIXED[name]}")
    if name in _SHARES and not 0.0 <= value <= 1.0:
        raise MergeError(f"{name}{whose}: got {value} for {wanted.name}, takes 0 to 1")
    return value


def _dtype(recipe: Recipe, name: str, found: Sequence[_Found]) -> np.dtype:
    """Of the output: the recipe's, or that of all inputs."""
    kinds = {one.tensor.dtype.name: one.source.model for one in found}
    for dtype, model in kinds.items():
        if dtype not in FLOATS:
            raise MergeError(f"{name}: {model} has it in {dtype}, which is not merged")
    if recipe.dtype:
        return FLOATS[recipe.dtype]
    if len(kinds) > 1:
        has = ", ".join(f"{dtype} in {model}" for dtype, model in kinds.items())
        raise MergeError(f"{name}: is {has}; say which dtype the output has by dtype:")
    return found[0].tensor.dtype


def _shape(recipe: Recipe, name: str, found: Sequence[_Found]) -> tuple[int, ...]:
    """Of the output; tensors with a row a token may differ in the number of rows, by policy."""
    shapes = [one.tensor.shape for one in found]
    if len(set(shapes)) == 1:
        return shapes[0]
    has = ", ".join(f"{one.tensor.shape} in {one.source.model}" for one in found)
    if not names.has_vocabulary(name) or len({shape[1:] for shape in shapes}) > 1:
        raise MergeError(f"{name}: is {has}; models are merged that have the same shapes")
    if recipe.shapes == "error":
        raise MergeError(f"{name}: is {has}; say shapes: pad or intersect for another vocabulary")
    rows = [shape[0] for shape in shapes]
    return (max(rows) if recipe.shapes == "pad" else min(rows), *shapes[0][1:])


def _changes(
    recipe: Recipe, slices: Sequence[Slice], donor: Model, tasks: Sequence[Task]
) -> dict[str, int | bool]:
    changes: dict[str, int | bool] = {}
    config = donor.config
    if recipe.stacked:
        layers = {layer.index for task in tasks if (layer := names.layer_of(task.name))}
        keys = [key for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config]
        changes[keys[0] if keys else "num_hidden_layers"] = len(layers)
    for task in tasks:
        rows = task.shape[0] if task.shape else 0
        if names.is_table(task.name) and config.get("vocab_size", rows) != rows:
            changes["vocab_size"] = rows
        if names.is_head(task.name) and config.get("tie_word_embeddings"):
            changes["tie_word_embeddings"] = False
    return changes
