"""Losses over several views of an image: contrastive prediction as a task beside the classes.

A batch [n V, ...] holds V views of each of n images, those of one after the other; the first of
each is the plain one, the others are augmented. Xu et al. 2020 (SSKD), ECCV, by released code, with
V 4: rotations by 0, 90, 180 and 270 degrees.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd_jax.losses import _checks, _geometry


def plain(rows: int, views: int) -> jax.Array:
    """bool [rows]: which rows of a batch are plain views. ValueError where rows do not divide."""
    if views < 2 or rows % views:
        raise ValueError(f"views: got {views}, takes a divisor of the {rows} rows from 2")
    return jnp.arange(rows) % views == 0


def view_similarities(
    features: Float[Array, "B D"], present: Bool[Array, " B"] | None = None, *, views: int = 4
) -> Float[Array, "A n"]:
    """Cosines of each augmented view with each plain one: f32 [n (V - 1), n].

    Row i belongs to image i // (V - 1). A plain view that is not `present` has -1e9: no softmax
    gives it anything.
    """
    plain(features.shape[0], views)
    here = _geometry.those(present, features)
    x = _geometry.normalised(_geometry.without_absent(_geometry.rows(features), here))
    x = x.reshape(-1, views, x.shape[-1])
    near = jnp.einsum("avd,nd->avn", x[:, 1:], x[:, 0])
    return jnp.where(here[::views][None], near.reshape(-1, len(x)), -1e9)


def least_wrong(
    scores: Float[Array, "A C"],
    answers: Int[Array, " A"],
    present: Bool[Array, " A"] | None = None,
    *,
    ratio: float = 1.0,
) -> Bool[Array, " A"]:
    """Which rows to distil on: all that are right, and floor(ratio wrong) of the wrong ones.

    A row's error is the place of its answer in the order of its scores, 0 where it is right; the
    wrong rows of least error are kept, among equals the first. Rows not `present` are not kept.
    Ties of scores go to the lower column. No gradient.
    """
    _checks.labels_of(scores, answers)
    _checks.share("ratio", ratio)
    here = _geometry.those(present, scores)
    columns, answer = jnp.arange(scores.shape[1])[None], answers[:, None]
    own = jnp.where(columns == answer, scores, 0.0).sum(-1, keepdims=True)
    error = ((scores > own) | ((scores == own) & (columns < answer))).sum(-1)
    wrong = here & (error > 0)
    error = jnp.where(here, error, scores.shape[1] + 1)
    kept = (here & (error == 0)).sum() + jnp.floor(ratio * wrong.sum()).astype(int)
    place = jnp.argsort(jnp.argsort(error, stable=True), stable=True)
    return here & (place < kept)
