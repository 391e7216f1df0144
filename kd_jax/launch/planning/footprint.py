"""What lies in a chip's memory, by category, from shapes and their shardings alone."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

PyTree = Any
CATEGORIES = ("parameters", "optimizer", "carry", "frozen", "batch")


class Footprint(NamedTuple):
    """Of a program's arguments, and of what stays on the chip beside them.

    bytes: of a chip, by category. host: bytes a chip keeps in its host's memory. arguments: bytes
    that the program takes; idle: bytes that lie there meanwhile (the optimiser's, during an
    evaluation). narrowed: bytes that bfloat16 would save in frozen. rows: of the batch, on a chip.
    """

    parameters: int
    frozen_parameters: int
    bytes: Mapping[str, int]
    host: int
    arguments: int
    idle: int
    narrowed: int
    rows: int


def of(arguments: PyTree, held: Mapping[str, PyTree]) -> Footprint:
    """Of ShapeDtypeStructs that carry shardings.

    held: what a stage keeps on its chips, by category. An argument that is none of it is "batch"
    where its rows are split over the mesh, and else "frozen": it is read and not trained.
    """
    category = {id(leaf): name for name, tree in held.items() for leaf in jax.tree.leaves(tree)}
    given = jax.tree.leaves(arguments)
    taken = {id(leaf) for leaf in given}
    extra = {id(leaf): leaf for leaf in given if id(leaf) not in category}
    leaves = [
        *((name, leaf) for name, tree in held.items() for leaf in jax.tree.leaves(tree)),
        *(("batch" if _is_split_by_rows(leaf) else "frozen", leaf) for leaf in extra.values()),
    ]
    sizes: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
    host = here = idle = narrowed = 0
    for name, leaf in leaves:
        size = bytes_of(leaf)
        if _on_host(leaf):
            host += size
            continue
        sizes[name] += size
        if id(leaf) in taken:
            here += size
        else:
            idle += size
        if name == "frozen" and leaf.dtype == jnp.float32:
            narrowed += size // 2
    rows = [_shard(leaf)[0] for name, leaf in leaves if name == "batch" and leaf.shape]
    return Footprint(
        sum(leaf.size for name, leaf in leaves if name == "parameters"),
        sum(_floats(leaf for name, leaf in leaves if name == "frozen")),
        sizes,
        host,
        here,
        idle,
        narrowed,
        min(rows, default=0),
    )


def bytes_of(leaf: Any) -> int:
    """Of one chip's part of an array. The compiler may pad it; that shows in the peak."""
    return math.prod(_shard(leaf)) * leaf.dtype.itemsize


def _shard(leaf: Any) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def _on_host(leaf: Any) -> bool:
    return leaf.sharding is not None and leaf.sharding.memory_kind == "pinned_host"


def _is_split_by_rows(leaf: Any) -> bool:
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or not leaf.shape or not sharding.spec:
        return False
    first = sharding.spec[0]
    return first is not None and "data" in ((first,) if isinstance(first, str) else first)


def _floats(leaves: Iterator[Any]) -> Iterator[int]:
    return (leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
