"""What to do, before a merge, with models whose leaves or shapes differ from the base's.

Merges take trees of one outline and name the paths where they differ. These policies make them so:
`intersect` keeps what all trees have, `pad` what any has. Trees are nested dicts of arrays with the
same number of axes where they share a path. Entries are matched by position (row v of two
vocabularies is the same token: the longer one appended to the other).
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.types import PyTree

Pair = tuple[PyTree, list[PyTree]]


def intersect(base: PyTree, models: Sequence[PyTree]) -> Pair:
    """(base, models) with only the paths that all have, each leaf cut to the shortest extents.

    Along each axis the leading entries stay. `restore` puts a merge of these back into the base.
    ValueError if nothing is left.
    """
    flats = [trees.flatten(tree) for tree in (base, *models)]
    shared = [path for path in flats[0] if all(path in flat for flat in flats)]
    if not shared:
        raise ValueError("models: share no path with the base")
    shapes = {path: _extents(path, flats, min) for path in shared}
    cut = [{path: flat[path][_region(shapes[path])] for path in shared} for flat in flats]
    first, *rest = (trees.nest(flat) for flat in cut)
    return first, rest


def restore(base: PyTree, merged: PyTree) -> PyTree:
    """The base with the leaves and leading entries of `merged` in place of its own.

    The inverse of `intersect`'s cut: what not all models had is the base's. Dtypes of the base.
    """
    flat, like = trees.flatten(merged), trees.flatten(base)
    faults = [
        f"{path} {jnp.shape(x)}"
        for path, x in flat.items()
        if path not in like
        or jnp.ndim(x) != jnp.ndim(like[path])
        or any(n > m for n, m in zip(jnp.shape(x), jnp.shape(like[path]), strict=True))
    ]
    if faults:
        raise ValueError(f"merged: does not fit into the base: {', '.join(faults)}")

    def put(path: str, x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if path not in flat:
            return x
        return x.at[_region(jnp.shape(flat[path]))].set(jnp.asarray(flat[path], x.dtype))

    return trees.map_with_path(put, base)


def pad(base: PyTree, models: Sequence[PyTree]) -> Pair:
    """(base, models) with every path that any has, each leaf grown to the longest extents.

    An entry that a model lacks is the base's: its task vector is 0 there. An entry that the base
    lacks is, in the base and in the models that lack it, the mean of the models that have it, so
    that what a single model has comes out as it is; 0 where none has one (a corner between two
    longer axes). A leaf that a tree lacks has the dtype of the base, or of the first model with it;
    the others keep theirs.
    """
    flats = [trees.flatten(tree) for tree in (base, *models)]
    names = list(dict.fromkeys(path for flat in flats for path in flat))
    grown: list[dict[str, jax.Array]] = [{} for _ in flats]
    for path in names:
        leaves = [flat.get(path) for flat in flats]
        for i, x in enumerate(_grow(leaves, _extents(path, flats, max))):
            grown[i][path] = x
    first, *rest = (trees.nest(flat) for flat in grown)
    return first, rest


def _grow(leaves: Sequence[jax.Array | None], shape: tuple[int, ...]) -> list[jax.Array]:
    """The leaves of the base and of the models (None where missing), all of `shape`."""
    if all(x is not None and jnp.shape(x) == shape for x in leaves):
        return [jnp.asarray(x) for x in leaves]
    first = next(jnp.asarray(x) for x in leaves if x is not None)
    parts = [_place(x, shape) for x in leaves]
    theirs = [(x, has) for x, has in parts[1:]]
    count = sum((has.astype(jnp.float32) for _, has in theirs), jnp.zeros(shape))
    mean = sum((x for x, _ in theirs), jnp.zeros(shape)) / jnp.maximum(count, 1.0)
    like, has_base = parts[0]
    like = jnp.where(has_base, like, mean)
    return [
        jnp.where(has, x, like).astype(first.dtype if leaf is None else leaf.dtype)
        for leaf, (x, has) in zip(leaves, parts, strict=True)
    ]


def _place(x: jax.Array | None, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(x in the leading entries of zeros, where x is), f32 and bool of `shape`."""
    if x is None:
        return jnp.zeros(shape), jnp.zeros(shape, bool)
    margins = [(0, n - m) for n, m in zip(shape, jnp.shape(x), strict=True)]
    return (
        jnp.pad(jnp.asarray(x, jnp.float32), margins),
        jnp.pad(jnp.ones(jnp.shape(x), bool), margins),
    )


def _extents(
    path: str, flats: Sequence[Mapping[str, jax.Array]], choose: Callable[..., int]
) -> tuple[int, ...]:
    shapes = {jnp.shape(flat[path]) for flat in flats if path in flat}
    if len({len(shape) for shape in shapes}) > 1:
        found = ", ".join(map(str, sorted(shapes)))
        raise ValueError(f"{path}: takes one number of axes in all trees, got shapes {found}")
    return tuple(choose(extents) for extents in zip(*shapes, strict=True))


def _region(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(n) for n in shape)
