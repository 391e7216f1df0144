"""Image classifiers from safetensors files of torchvision's and timm's weights.

    modules = torch_modules.of_resnet(RESNET_34)
    opened = open_classifier("resnet34.safetensors", resnet(RESNET_34), modules)
    teacher, state = Weights(*opened.params), Weights(*opened.state)

Opening reads the header only, and every tensor is accounted for there and then; making reads each
shard from the file's memory map. On the Hugging Face hub timm/resnet34.tv_in1k and
timm/resnet18.tv_in1k hold torchvision's weights as safetensors. Pickled files (.pth) are not read:
with torch, `safetensors.torch.save_file(torch.load("resnet34.pth"), "resnet34.safetensors")`.
Images must be normalised as the weights were trained on, see `normalised`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import trees
from kd_jax.formats import huggingface, safetensors
from kd_jax.formats.tensors import LazyTensor, bounds
from kd_jax.models.torch_modules import Module
from kd_jax.types import Model

PyTree = Any

_LEAVES = {
    "kernel": ".weight",
    "scale": ".weight",
    "bias": ".bias",
    "mean": ".running_mean",
    "var": ".running_var",
    "embedding": "",
}
_NOT_WEIGHTS = r".*\.num_batches_tracked"  # a counter of old PyTorch's batch norm


class Readable(NamedTuple):
    """A tree in a file: `launch.weights.Weights(*readable)`.

    abstract: its ShapeDtypeStructs. make(tree of ShapeDtypeStructs like abstract, with shardings)
    -> arrays in the dtypes asked for; without a sharding, on the first device.
    """

    abstract: PyTree
    make: Callable[[PyTree], PyTree]


class Classifier(NamedTuple):
    """A classifier in a file, opened and checked: its parameters and its norms' statistics."""

    params: Readable
    state: Readable


class _Source(NamedTuple):
    """The tensor that makes a leaf, and how its array is seen as the leaf."""

    tensor: LazyTensor
    view: Callable[[np.ndarray], np.ndarray]


def open_classifier(path: str | Path, model: Model, modules: Mapping[str, Module]) -> Classifier:
    """The weights of `model` in a safetensors file, or in a folder as Hugging Face lays it out.

    modules: {layer of the model: module in the file}, of `torch_modules`, for the model's config.
    ValueError, naming it: a tensor that is missing, left over or of another shape than the model
    has, a malformed file. Counters of batches are passed over.
    """
    path = Path(path)
    if path.is_dir():
        tensors = huggingface.open_folder(path)
    elif path.is_file():
        tensors = safetensors.open_tensors(path)
    else:
        raise FileNotFoundError(f"{path}: there is no such file or folder of weights")
    abstract = {
        "params": jax.eval_shape(model.init, jax.random.key(0)),
        "state": jax.eval_shape(model.state),
    }
    left = {name for name in tensors if not re.fullmatch(_NOT_WEIGHTS, name)}
    faults: dict[str, str] = {}
    found: dict[str, dict[str, _Source]] = {"params": {}, "state": {}}
    for part, tree in abstract.items():
        for leaf, aval in trees.flatten(tree).items():
            layer, last = leaf.rsplit("/", 1)
            if layer not in modules:
                raise ValueError(
                    f"modules: got none for {layer}, takes those of the model's config"
                )
            module = modules[layer]
            name = module.name + _LEAVES[last]
            shape, view = _layout(aval.shape, last, module)
            left.discard(name)
            if name not in tensors:
                faults[name] = "is missing"
            elif tensors[name].shape != shape:
                faults[name] = f"has shape {tensors[name].shape}, {shape} was expected"
            else:
                found[part][leaf] = _Source(tensors[name], view)
    faults |= dict.fromkeys(sorted(left), "is left over")
    if faults:
        said = [f"{name} {fault}" for name, fault in faults.items()]
        more = f" and {len(said) - 8} more" if len(said) > 8 else ""
        raise ValueError(f"{path}: " + "; ".join(said[:8]) + more)
    return Classifier(*(_readable(abstract[part], found[part]) for part in ("params", "state")))


def _readable(abstract: PyTree, sources: Mapping[str, _Source]) -> Readable:
    def make(placed: PyTree) -> PyTree:
        trees.check_same("placed", placed, "the file", abstract)
        return trees.map_with_path(lambda path, leaf: _make(leaf, sources[path]), placed)

    return Readable(abstract, make)


def _make(leaf: jax.ShapeDtypeStruct, source: _Source) -> jax.Array:
    def fetch(index: tuple[slice, ...] | None) -> np.ndarray:
        parts = bounds(... if index is None else index, leaf.shape)
        # New memory each time: on the CPU JAX may take it over, and a step donate it.
        return np.array(source.view(source.tensor.read(...))[parts], leaf.dtype, order="C")

    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, fetch)


def _layout(
    shape: tuple[int, ...], last: str, module: Module
) -> tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]:
    """(the shape in the file of a leaf of ours, the file's array -> ours)."""
    if last == "embedding":
        return (1, *shape), lambda x: x[0]
    if module.patch and last == "kernel":  # [D, C, P, P]; ours are rows of pixels, then channels
        side, (pixels, width) = module.patch, shape
        whole = (width, pixels // side**2, side, side)
        return whole, lambda x: x.transpose(2, 3, 1, 0).reshape(shape)
    if len(shape) == 4:  # [out, in, height, width]
        return (shape[3], shape[2], *shape[:2]), lambda x: x.transpose(2, 3, 1, 0)
    if module.third is not None:
        rows = slice(module.third * shape[-1], (module.third + 1) * shape[-1])
        return (3 * shape[-1], *shape[-2::-1]), lambda x: x[rows].T
    return shape[::-1], lambda x: x.T
