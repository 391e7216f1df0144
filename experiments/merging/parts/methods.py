"""The merges that are compared, as directions from the pretrained model.

A direction is what a merge adds to the pretrained trunk at scale 1, so that one scale, the papers'
lambda or alpha, can be set or searched for each of them alike.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.merging import ties
from kd_jax.merging.arithmetic import task_vector
from kd_jax.merging.breadcrumbs import breadcrumbs
from kd_jax.merging.dare import dare
from kd_jax.merging.della import della
from kd_jax.merging.model_stock import model_stock

PyTree = Any
Vectors = Sequence[PyTree]
Directions = Callable[[PyTree, Vectors, jax.Array], dict[str, PyTree]]


class Sizes(NamedTuple):
    """trim: the share of entries that TIES keeps. density: the share that DARE and DELLA keep.
    epsilon: DELLA's. keep, remove: of breadcrumbs."""

    trim: float
    density: float
    epsilon: float
    keep: float
    remove: float


class Method(NamedTuple):
    """A merge: what is made sparse how, what of these vectors is the direction, and the scale that
    its paper takes unsearched.

    searched: a scale can be chosen for it on validation images.
    """

    sparse: Callable[[PyTree, jax.Array, Sizes], PyTree]
    direction: Callable[[Vectors], PyTree]
    scale: float
    searched: bool = True


def total(vectors: Vectors) -> PyTree:
    return jax.tree.map(lambda *x: sum(x), *vectors)


def _mean(vectors: Vectors) -> PyTree:
    return jax.tree.map(lambda x: x / len(vectors), total(vectors))


def _stock(vectors: Vectors) -> PyTree:
    return model_stock(jax.tree.map(jnp.zeros_like, vectors[0]), vectors)


def _agreeing(vectors: Vectors) -> PyTree:
    return ties.disjoint_mean(vectors, ties.elect(vectors))


def _whole(vector: PyTree, key: jax.Array, sizes: Sizes) -> PyTree:
    return vector


def _trimmed(vector: PyTree, key: jax.Array, sizes: Sizes) -> PyTree:
    return ties.trim(vector, density=sizes.trim)


def _dare(vector: PyTree, key: jax.Array, sizes: Sizes) -> PyTree:
    return dare(vector, key, drop=1 - sizes.density)


def _della(vector: PyTree, key: jax.Array, sizes: Sizes) -> PyTree:
    return della(vector, key, density=sizes.density, epsilon=sizes.epsilon)


def _crumbs(vector: PyTree, key: jax.Array, sizes: Sizes) -> PyTree:
    return breadcrumbs(vector, keep=sizes.keep, remove=sizes.remove)


# Of one sum of task vectors only the scale can be searched: an average is task arithmetic then.
METHODS: dict[str, Method] = {
    "average": Method(_whole, _mean, 1.0, searched=False),
    "model stock": Method(_whole, _stock, 1.0, searched=False),
    "task arithmetic": Method(_whole, total, 0.3),
    "TIES": Method(_trimmed, _agreeing, 1.0),
    "DARE": Method(_dare, total, 0.3),
    "DARE, TIES": Method(_dare, _agreeing, 1.0),
    "DELLA, sum": Method(_della, total, 0.3),
    "DELLA": Method(_della, _agreeing, 1.0),
    "breadcrumbs": Method(_crumbs, total, 0.3),
}


@functools.cache  # one compilation for each number of models, over all seeds
def directions(sizes: Sizes) -> Directions:
    """(base, specialists, key) -> {name of METHODS: direction}, jitted."""

    @jax.jit
    def all_of_them(base: PyTree, thetas: Vectors, key: jax.Array) -> dict[str, PyTree]:
        vectors = [task_vector(base, theta) for theta in thetas]
        keys = jax.random.split(key, len(vectors))
        # Once each: the sorts of DELLA take long to compile.
        sparse = {
            make: [make(vector, own, sizes) for vector, own in zip(vectors, keys, strict=True)]
            for make in dict.fromkeys(method.sparse for method in METHODS.values())
        }
        return {name: m.direction(sparse[m.sparse]) for name, m in METHODS.items()}

    return all_of_them


def _mean_of_kept(vectors: Vectors, signs: PyTree) -> PyTree:
    """As `ties.disjoint_mean`, of all entries that trimming kept, whatever their sign."""

    def mean(*taus: jax.Array) -> jax.Array:
        count = sum((x != 0).astype(jnp.float32) for x in taus)
        return sum(taus) / jnp.maximum(count, 1.0)

    return jax.tree.map(mean, *vectors)


def _mean_of_all(vectors: Vectors, signs: PyTree) -> PyTree:
    """The sum of what agrees over the number of models: a mean that counts the zeros too."""
    return jax.tree.map(lambda x: x / len(vectors), ties.disjoint_sum(vectors, signs))


# Steps of TIES left out or changed: is it trimmed, and what merges (vectors, signs).
STEPS: dict[str, tuple[bool, Callable[[Vectors, PyTree], PyTree]]] = {
    "TIES": (True, ties.disjoint_mean),
    "no trimming": (False, ties.disjoint_mean),
    "no election": (True, _mean_of_kept),
    "mean over all": (True, _mean_of_all),
    "sum": (True, ties.disjoint_sum),
    "largest": (True, ties.disjoint_max),
}
ORACLE = "oracle signs"


@functools.cache
def ablations(sizes: Sizes) -> Callable[[PyTree, Vectors, PyTree], dict[str, PyTree]]:
    """(base, specialists, multitask model) -> {name of STEPS, or ORACLE: direction}, jitted.

    The oracle's signs are those of the multitask model's task vector.
    """

    @jax.jit
    def all_of_them(base: PyTree, thetas: Vectors, multitask: PyTree) -> dict[str, PyTree]:
        vectors = [task_vector(base, theta) for theta in thetas]
        trimmed = [ties.trim(x, density=sizes.trim) for x in vectors]
        found = {}
        for name, (trims, merge) in STEPS.items():
            of = trimmed if trims else vectors
            found[name] = merge(of, ties.elect(of))
        signs = jax.tree.map(lambda x: jnp.sign(x).astype(jnp.int8), task_vector(base, multitask))
        return found | {ORACLE: ties.disjoint_mean(trimmed, signs)}

    return all_of_them


KINDS = ("one model alone", "all agree", "in conflict")


@functools.cache
def conflicts(trim: float) -> Callable[[PyTree, Vectors], Mapping[str, jax.Array]]:
    """(base, specialists) -> {one of KINDS: its share}, jitted, of the entries that some model
    keeps when task vectors are trimmed: one alone, several of one sign, several of both."""

    @jax.jit
    def shares(base: PyTree, thetas: Vectors) -> dict[str, jax.Array]:
        vectors = [ties.trim(task_vector(base, x), density=trim) for x in thetas]
        flat = [jnp.concatenate([x.ravel() for x in jax.tree.leaves(v)]) for v in vectors]
        up, down = (sum((sign * x > 0).astype(jnp.int32) for x in flat) for sign in (1, -1))
        kept = jnp.sum(up + down > 0)
        one, both = up + down == 1, (up > 0) & (down > 0)
        agree = (up + down > 1) & ~both
        counts = map(jnp.sum, (one, agree, both))
        return {kind: n / kept for kind, n in zip(KINDS, counts, strict=True)}

    return shares
