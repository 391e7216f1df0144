"""Merges by rule: other methods or coefficients by path and layer, so that a recipe is data.

A merge here is a function (base, models) -> tree. `by_path` joins merges of parts of a model into
one of the whole, `each_layer` makes one of a layer into one of stacked layers:

    llama = by_path([
        (r".*norm/scale", lambda base, models: average(models)),
        (r"layers/attn/.*", each_layer(spherical, t=layer_gradient([0, 0.5, 1], 32))),
        (r"layers/mlp/.*", functools.partial(ties, density=0.2)),
        (r"(un)?embed/embedding", lambda base, models: base),
    ])
    merged = llama(base, models)

where spherical = lambda base, models, t: slerp(base, models[0], t).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging._checks import check_models
from kd_jax.types import PyTree

Merge = Callable[..., PyTree]


def by_path(rules: Sequence[tuple[str, Merge]]) -> Merge:
    """The merge that gives each leaf to the first rule (pattern, merge) that matches its path.

    The leaves of one rule are merged together, as {path: leaf} (what is flat in a method is flat
    over them), under the paths of the whole tree, so that patterns, groups and random keys mean
    the same inside. The result has the outline of the base.

    Strict, as `trees.match_rules`: ValueError names each leaf without a rule and each rule without
    a leaf. ValueError if a merge does not give back the leaves it was given.
    """

    def merge(base: PyTree, models: Sequence[PyTree]) -> PyTree:
        check_models(models, base)
        numbered = [(pattern, i) for i, (pattern, _) in enumerate(rules)]
        owner = trees.flatten(trees.match_rules(numbered, base))
        flat_base, flat_models = trees.flatten(base), [trees.flatten(model) for model in models]
        merged = {}
        for i, (pattern, part) in enumerate(rules):
            own = [path for path, number in owner.items() if number == i]
            like = {path: flat_base[path] for path in own}
            given = part(like, [{path: model[path] for path in own} for model in flat_models])
            trees.check_same(f"the result of rule {pattern!r}", given, "base", like)
            merged |= given
        return trees.map_with_path(lambda path, _: merged[path], base)

    return merge


def each_layer(merge: Merge, **coefficients: Any) -> Merge:
    """The merge of stacked leaves [L, ...] that merges every layer by itself.

    merge(base, models, **coefficients) sees one layer's leaves, without the axis L, and one
    layer's coefficients; these are arrays (or trees of them) with a leading L: numbers as from
    `layer_gradient`, keys as from `jax.random.split(key, L)`. What is per leaf in a method is then
    per leaf and layer, what is flat is flat over the leaves of a layer. ValueError for leaves or
    coefficients of another L.
    """

    def merged(base: PyTree, models: Sequence[PyTree]) -> PyTree:
        check_models(models, base)
        given = {"base": base, **coefficients}
        shapes = {path: jnp.shape(x) for path, x in trees.flatten(given).items()}
        (first, like), *others = shapes.items()
        faults = [f"{path} {shape}" for path, shape in others if shape[:1] != like[:1]]
        if faults or not like:
            raise ValueError(
                f"takes leaves and coefficients of one leading L, got {first} {like}"
                f"{', '.join(['', *faults])}"
            )
        one = jax.vmap(lambda base, models, given: merge(base, models, **given))
        return one(base, list(models), coefficients)

    return merged


def layer_gradient(anchors: Sequence[Any], layers: int) -> jax.Array:
    """f32 [L]: the anchors spread evenly over the layers, in between on straight lines.

    Layer i of L is at i (K - 1) / (L - 1) among the K anchors 0..K - 1 (mergekit's gradients); a
    single layer takes the first anchor, a single anchor is every layer's value.
    """
    if not anchors or layers < 1:
        raise ValueError(f"anchors, layers: got {len(anchors)} and {layers}, takes one or more")
    at = jnp.linspace(0.0, len(anchors) - 1.0, layers)
    known = jnp.asarray(anchors, jnp.float32)
    return jnp.interp(at, jnp.arange(len(anchors), dtype=jnp.float32), known)
