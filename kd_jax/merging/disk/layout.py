"""Which tensors the output has, and which tensor of each model goes into each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kd_jax.formats.tensors import LazyTensor
from kd_jax.merging.disk import names
from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.inputs import Model
from kd_jax.merging.disk.recipe import Slice


class Wanted(NamedTuple):
    """A tensor of the output: its name, where it stands (0 the first layer of its slice, 1 the
    last, 0 outside layers), and what it is called in each of the slice's models."""

    name: str
    depth: float
    inputs: tuple[str, ...]


def whole(piece: Slice, models: Mapping[str, Model]) -> Iterable[tuple[Slice, Wanted]]:
    """Every tensor that a model has, in the order of the base's or first model's files."""
    members = [models[source.model] for source in piece.sources]
    if piece.base:
        members.insert(0, models[piece.base])
    everything = list(dict.fromkeys(name for model in members for name in model.tensors))
    for name, depth in names.depths(everything).items():
        yield piece, Wanted(name, depth, (name,) * len(piece.sources))


def stacked(slices: Sequence[Slice], models: Mapping[str, Model]) -> Iterable[tuple[Slice, Wanted]]:
    """Embeddings of the first slice, the layers of all in a row, norm and head of the last."""
    members = [models[source.model] for piece in slices for source in piece.sources]
    everything = dict.fromkeys(name for model in members for name in model.tensors)
    outside = [name for name in everything if names.layer_of(name) is None]
    for name in outside:
        if names.is_before(name):
            yield slices[0], Wanted(name, 0.0, (name,) * len(slices[0].sources))
    at = 0
    for piece in slices:
        ranges = [source.layers or (0, 0) for source in piece.sources]
        length = ranges[0][1] - ranges[0][0]
        for i in range(length):
            depth = i / (length - 1) if length > 1 else 1.0
            layers = [start + i for start, _ in ranges]
            for stack, rest in _layer(models[piece.sources[0].model], layers[0]):
                inputs = tuple(names.name_of(names.Layer(stack, x, rest)) for x in layers)
                yield piece, Wanted(names.name_of(names.Layer(stack, at, rest)), depth, inputs)
            at += 1
    for name in outside:
        if not names.is_before(name):
            yield slices[-1], Wanted(name, 0.0, (name,) * len(slices[-1].sources))


def _layer(model: Model, index: int) -> list[tuple[str, str]]:
    """(stack, rest) of the tensors of a layer."""
    layers = [layer for name in model.tensors if (layer := names.layer_of(name))]
    stacks = {layer.stack for layer in layers}
    if len(stacks) != 1:
        raise MergeError(
            f"slices: {model.name} has {len(stacks)} stacks of layers "
            f"({', '.join(sorted(stacks))}), takes models with one"
        )
    found = [(layer.stack, layer.rest) for layer in layers if layer.index == index]
    if not found:
        raise MergeError(f"layer_range: {model.name} has no layer {index}")
    return found


def find(model: Model, name: str) -> LazyTensor | None:
    """A model's tensor by its name; of a head that is not there, the embeddings it is tied to."""
    if name not in model.tensors and names.is_head(name):
        tables = [x for x in model.tensors.values() if names.is_table(x.name)]
        return tables[0] if len(tables) == 1 else None
    return model.tensors.get(name)
