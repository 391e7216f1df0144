"""Paths, strict rules over paths, partition and global thresholds of pytrees.

A path is the keys from root to leaf joined by "/": "layers/attn/q/kernel". Patterns are regular
expressions that must match a whole path.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Rule = str | Callable[[str], bool]


def path_name(path: Sequence[Any]) -> str:
    """The "/"-joined name of a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """tree.map of f(path, leaf, ...)."""
    return jax.tree_util.tree_map_with_path(lambda p, *x: f(path_name(p), *x), tree, *rest)


def flatten(tree: PyTree) -> dict[str, Any]:
    """{path: leaf}."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose `flatten` is `flat`; ValueError where a path is inside another."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} runs through the leaf {parent!r}")
        if last in node:
            raise ValueError(f"path {path!r} is given twice or is inside another path")
        node[last] = leaf
    return tree


def match_rules(rules: Sequence[tuple[str, Any]], tree: PyTree) -> PyTree:
    """The tree of values of the first rule (pattern, value) that matches each leaf's path.

    Strict: ValueError names every leaf that no rule matches and every rule that matches none.
    """
    used = [False] * len(rules)
    missing: list[str] = []

    def find(path: str, _: Any) -> Any:
        found = [i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)]
        for i in found:
            used[i] = True
        if not found:
            missing.append(path)
            return None
        return _Held(rules[found[0]][1])

    held = map_with_path(find, tree)
    if missing:
        raise ValueError(f"no rule matches {', '.join(missing)}")
    idle = [pattern for (pattern, _), hit in zip(rules, used, strict=True) if not hit]
    if idle:
        raise ValueError(f"rules that match no path: {', '.join(map(repr, idle))}")
    return jax.tree.map(lambda h: h.value, held, is_leaf=lambda x: isinstance(x, _Held))


class _Held:
    """Keeps a rule's value (None, a tuple) opaque to tree functions."""

    def __init__(self, value: Any):
        self.value = value


def as_predicate(rule: Rule) -> Callable[[str], bool]:
    """A predicate over paths from a pattern or a predicate."""
    if callable(rule):
        return rule
    pattern = re.compile(rule)
    return lambda path: pattern.fullmatch(path) is not None


def partition(tree: PyTree, rule: Rule) -> tuple[PyTree, PyTree]:
    """(selected, rest): two trees of the same outline, with None where the other holds the leaf.

    A rule that selects nothing is a ValueError.
    """
    predicate = as_predicate(rule)
    selected = map_with_path(lambda path, x: x if predicate(path) else None, tree)
    rest = map_with_path(lambda path, x: None if predicate(path) else x, tree)
    if not jax.tree.leaves(selected):
        raise ValueError(f"rule {rule!r} selects none of the paths {', '.join(paths(tree))}")
    return selected, rest


def combine(first: PyTree, second: PyTree) -> PyTree:
    """The inverse of `partition`: leaves of `first`, and of `second` where `first` has None."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def check_same(name: str, tree: PyTree, like_name: str, like: PyTree) -> None:
    """ValueError naming the paths and shapes in which two trees of arrays differ."""
    ours, theirs = flatten(tree), flatten(like)
    faults = [f"{p} only in {name}" for p in ours if p not in theirs]
    faults += [f"{p} only in {like_name}" for p in theirs if p not in ours]
    faults += [
        f"{p} is {jnp.shape(ours[p])} in {name}, {jnp.shape(theirs[p])} in {like_name}"
        for p in ours
        if p in theirs and jnp.shape(ours[p]) != jnp.shape(theirs[p])
    ]
    if faults:
        raise ValueError(f"{name} and {like_name} differ: " + "; ".join(faults))


def size(tree: PyTree) -> int:
    """The number of scalars in all leaves (arrays or ShapeDtypeStructs)."""
    return sum(x.size for x in jax.tree.leaves(tree))


def kth_smallest_magnitude(tree: PyTree, k: int) -> jax.Array:
    """The k-th smallest |x| (1-based) over all leaves together, exact, as an f32 scalar.

    A radix select: the bits of a non-negative float32 order as the float does, so 31 counting
    passes fix one bit each. Nothing is sorted or concatenated; leaves may be sharded. NaN counts
    as larger than every number. A leaf of 2**32 entries or more (stacked layers) is counted layer
    by layer along its first axis, of fewer than 2**15 layers.
    """
    leaves = [
        jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)
        for x in jax.tree.leaves(tree)
    ]
    total = sum(x.size for x in leaves)
    if not 1 <= k <= total:
        raise ValueError(f"k: got {k}, takes 1 to the number of entries, {total}")

    def below(candidate: jax.Array) -> jax.Array:
        """Are fewer than k entries smaller than the candidate?"""
        high, low = count([x < candidate for x in leaves], jnp.uint32)
        k_high, k_low = jnp.uint32(k >> 16), jnp.uint32(k & 0xFFFF)
        return (high < k_high) | ((high == k_high) & (low < k_low))

    def fix_bit(i: jax.Array, prefix: jax.Array) -> jax.Array:
        candidate = prefix | (jnp.uint32(1) << (30 - i).astype(jnp.uint32))
        return jnp.where(below(candidate), candidate, prefix)

    bits = jax.lax.fori_loop(0, 31, fix_bit, jnp.uint32(0))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


_LARGE = 2**31


def count(leaves: Sequence[jax.Array], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The exact sum of all leaves (bool, or int8 of at most 1) as (high, low): high * 2**16 + low.

    Both are of the dtype, uint32 or int32, and low is in 0..2**16 - 1: counts of the entries of
    large models pass 2**32.
    """
    low, high = jnp.zeros((), dtype), jnp.zeros((), dtype)
    for x in leaves:
        large = x.size >= _LARGE
        if large and (x.shape[0] >= 2**15 or x.size // x.shape[0] >= 2**31):
            raise ValueError(f"tree: a leaf {x.shape} of {x.size} entries; unstack it")
        parts = jnp.sum(x, axis=tuple(range(1, x.ndim)) if large else None, dtype=dtype)
        low += jnp.sum(parts & 0xFFFF, dtype=dtype)
        high += jnp.sum(parts >> 16, dtype=dtype) + (low >> 16)
        low &= 0xFFFF
    return high, low
