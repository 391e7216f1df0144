"""Masks over a model's weights, made where they are read, and what moved inside and outside."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kd_jax.attribution import scores
from kd_jax.attribution.masks import top_mask
from kd_jax.launch.sharding import shardings_of, with_shardings
from kd_jax.launch.weights import Weights

PyTree = Any
Name = Literal["random", "magnitude", "saliency", "wagle"]
# (seed, gamma, weights, gradient sums of forget and of retain) -> a score for each weight
Score = Callable[[int, float, PyTree, PyTree, PyTree], PyTree]


def _random(seed: int, gamma: float, theta: PyTree, forget: PyTree, retain: PyTree) -> PyTree:
    # Another key than the initial weights were drawn with.
    return scores.uniform(jax.random.fold_in(jax.random.key(seed), 1), theta)


def _magnitude(seed: int, gamma: float, theta: PyTree, forget: PyTree, retain: PyTree) -> PyTree:
    return scores.magnitude(theta)


def _saliency(seed: int, gamma: float, theta: PyTree, forget: PyTree, retain: PyTree) -> PyTree:
    return scores.saliency(forget)


def _wagle(seed: int, gamma: float, theta: PyTree, forget: PyTree, retain: PyTree) -> PyTree:
    return scores.wagle(theta, forget, retain, gamma=gamma)


SCORES: dict[Name, Score] = {
    "random": _random,
    "magnitude": _magnitude,
    "saliency": _saliency,
    "wagle": _wagle,
}
NAMES = tuple(SCORES)


def mask(
    score: Name,
    weights: Weights,
    forget: Weights,
    retain: Weights,
    *,
    ratio: float,
    gamma: float,
    seed: int,
) -> Weights:
    """The mask of a score of `SCORES`: a function of what lies there, so that none is stored.

    weights: before unlearning. forget, retain: their gradient sums. gamma: WAGLE's; seed: of the
    random mask.
    """
    parts = (weights, forget, retain)

    def choose(*trees: PyTree) -> PyTree:
        return top_mask(SCORES[score](seed, gamma, *trees), ratio=ratio)

    def make(placed: PyTree) -> PyTree:
        shardings = shardings_of(placed)
        trees = [part.make(with_shardings(part.abstract, shardings)) for part in parts]
        return jax.jit(choose, out_shardings=shardings)(*trees)

    return Weights(jax.eval_shape(choose, *(part.abstract for part in parts)), make)


def moved(before: PyTree, after: PyTree, mask: PyTree) -> dict[str, int]:
    """How many weights have changed by any bit, in the mask and outside of it."""
    inside, outside = _counts(before, after, mask)
    return {"moved_inside": int(inside), "moved_outside": int(outside)}


@jax.jit
def _counts(before: PyTree, after: PyTree, mask: PyTree) -> tuple[Any, Any]:
    def differ(a: jax.Array, b: jax.Array) -> jax.Array:
        first, second = (jax.lax.bitcast_convert_type(x, jnp.uint8) for x in (a, b))
        return jnp.any(first != second, axis=-1)

    changed = jax.tree.map(differ, before, after)
    inside = jax.tree.map(lambda d, m: jnp.sum(d & m), changed, mask)
    outside = jax.tree.map(lambda d, m: jnp.sum(d & ~m), changed, mask)
    return sum(jax.tree.leaves(inside)), sum(jax.tree.leaves(outside))
