"""Layer swapping: outer layers of one expert around the inner layers of another (arXiv 2410.01335).

Trees are a decoder's, with layers stacked on a leading axis ("layers/attn/q/kernel" [L, ...]) or
one subtree a layer ("layers/0/attn/q/kernel"); other trees by other patterns. The operators are per
layer: a layer's leaves all have the same coefficient.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import trees
from kd_jax.merging._checks import check_models
from kd_jax.types import PyTree

Sides = Sequence[tuple[str, int]]

# Which layer a leaf outside of the layers goes with: the first, or the last.
SIDES: Sides = (("embed/.*", 0), ("final_norm/.*", -1), ("unembed/.*", -1))
TIED: Sides = (("embed/.*", -1), ("final_norm/.*", -1))

# Leaves of layers; the group "layer" is a layer's number where layers are subtrees.
LAYERS = r"layers/(?:(?P<layer>\d+)/)?.*"


def zones(depth: int, *, bottom: int, top: int, transition: int = 0) -> np.ndarray:
    """The language expert's share of each layer, f32 [L] of 0, 0.5 and 1.

    1 in the `bottom` first and the `top` last layers, 0.5 in the `transition` layers next to each
    of these blocks that is not empty, and 0 between. ValueError where the blocks do not fit; the
    two transitions may meet in the middle.

    That transitions lie inside and are means of both experts is UNVERIFIED against the paper.
    """
    for name, value in (("bottom", bottom), ("top", top), ("transition", transition)):
        if value < 0:
            raise ValueError(f"{name}: got {value}, takes numbers from 0")
    if bottom + top > depth:
        raise ValueError(f"bottom, top: got {bottom} and {top}, takes up to {depth} layers in all")
    layer = np.arange(depth)
    below = layer < bottom + (transition if bottom else 0)
    above = layer >= depth - top - (transition if top else 0)
    share = np.where(below | above, 0.5, 0.0)
    share[:bottom] = 1.0
    share[depth - top :] = 1.0
    return share.astype(np.float32)


def blend_layers(
    task: PyTree, language: PyTree, share: Any, *, sides: Sides = SIDES, layers: str = LAYERS
) -> PyTree:
    """(1 - s_l) task_l + s_l language_l for each layer l, in the dtypes of `task`.

    share: s, f32 [L]; may be traced, and the result is differentiable in it. sides: (pattern,
    layer) for the leaves outside of the layers, which have the coefficient of that layer: `SIDES`
    for a decoder, `TIED` for one whose embedding is its head. layers: a pattern of the leaves of
    layers. ValueError for a leaf that no pattern matches, and for a side that matches none.
    """
    check_models([task, language])
    depth = _depth(task, layers)
    share = jnp.asarray(share, jnp.float32)
    if share.shape != (depth,):
        raise ValueError(f"share: got shape {share.shape}, takes one a layer, ({depth},)")
    # Where a leaf's coefficients are in `share`: all of it for stacked layers.
    places = trees.match_rules([(layers, slice(None)), *sides], task)

    def blend(path: str, place: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        number = _number(path, layers)
        s = share[place if number is None else number]
        s = s.reshape(s.shape + (1,) * (a.ndim - s.ndim))
        mixed = (1.0 - s) * jnp.asarray(a, jnp.float32) + s * jnp.asarray(b, jnp.float32)
        return mixed.astype(a.dtype)

    return trees.map_with_path(blend, places, task, language)


def layer_swap(
    task: PyTree,
    language: PyTree,
    *,
    bottom: int,
    top: int,
    transition: int = 0,
    sides: Sides = SIDES,
    layers: str = LAYERS,
) -> PyTree:
    """The task's expert with the `bottom` first and `top` last layers of the language's expert.

    The `transition` layers next to these are means of both (`zones`); the embedding goes with the
    first layer, the last norm and the head with the last one, a tied table too (`sides`; UNVERIFIED
    against the paper). task, language: trees of the same paths and shapes, floating leaves, both
    fine-tuned from one base. bottom = top = 0 gives the task's expert, bottom = L the language's.
    In the paper four or five and one or two of 32 layers, transitions of one or two (UNVERIFIED).

    arXiv 2410.01335.
    """
    share = zones(_depth(task, layers), bottom=bottom, top=top, transition=transition)
    return blend_layers(task, language, share, sides=sides, layers=layers)


class LayerChange(NamedTuple):
    """How far fine-tuning moved each layer, f32 [L] each, over all of the layer's entries.

    mean_absolute: the mean of |theta - theta0|. changed: the share of entries that differ.
    """

    mean_absolute: jax.Array
    changed: jax.Array


def layer_change(model: PyTree, base: PyTree, *, layers: str = LAYERS) -> LayerChange:
    """What says where a swap may cut: a language moves outer layers, a task inner ones.

    model, base: trees of the same paths and shapes; leaves outside of `layers` are not read.
    arXiv 2410.01335 (which of the two figures the paper shows is UNVERIFIED).
    """
    check_models([model], base, "model")
    depth = _depth(base, layers)
    total, changed, size = jnp.zeros(depth), jnp.zeros(depth), np.zeros(depth, np.float32)
    theirs = trees.flatten(base)
    for path, leaf in trees.flatten(model).items():
        if not re.fullmatch(layers, path):
            continue
        moved = jnp.asarray(leaf, jnp.float32) - jnp.asarray(theirs[path], jnp.float32)
        number = _number(path, layers)
        where = np.arange(depth) if number is None else np.array([number])
        moved = moved.reshape(len(where), -1)
        total = total.at[where].add(jnp.abs(moved).sum(1))
        changed = changed.at[where].add((moved != 0).sum(1).astype(jnp.float32))
        size[where] += moved.shape[1]
    return LayerChange(total / size, changed / size)


def _number(path: str, layers: str) -> int | None:
    """The layer of a leaf in a tree with a subtree a layer; None of other leaves."""
    found = re.fullmatch(layers, path)
    number = found.groupdict().get("layer") if found else None
    return None if number is None else int(number)


def _depth(tree: PyTree, layers: str) -> int:
    """L; ValueError where the leaves of layers do not agree on it."""
    own = {path: x for path, x in trees.flatten(tree).items() if re.fullmatch(layers, path)}
    if not own:
        raise ValueError(f"layers: {layers!r} matches none of the paths {trees.paths(tree)}")
    numbers = sorted({n for n in (_number(path, layers) for path in own) if n is not None})
    if numbers and None not in (_number(path, layers) for path in own):
        if numbers != list(range(len(numbers))):
            raise ValueError(f"layers: got layers {numbers}, takes 0, 1, ... without a gap")
        return len(numbers)
    lengths = {jnp.shape(x)[:1] for x in own.values()}
    if numbers or len(lengths) > 1 or () in lengths:
        shapes = "; ".join(f"{path} is {jnp.shape(x)}" for path, x in own.items())
        raise ValueError(f"layers: takes leaves [L, ...] of one L, or a subtree a layer: {shapes}")
    return lengths.pop()[0]
