"""What every merge asks of its arguments, checked once when traced."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.types import PyTree


def check_floating(name: str, tree: PyTree) -> None:
    """ValueError naming the leaves that are not floating: they have no mean."""
    faults = [
        f"{path} is {leaf.dtype}"
        for path, leaf in trees.flatten(tree).items()
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if faults:
        raise ValueError(
            f"{name}: takes floating leaves, got {'; '.join(faults)}; "
            "take the others out with kd_jax.trees.partition"
        )


def check_models(
    models: Sequence[PyTree], base: PyTree | None = None, name: str = "models"
) -> None:
    """ValueError unless there is a model, all are like the base (or the first), all floating."""
    if not models:
        raise ValueError(f"{name}: got none, takes at least one")
    like_name, like = (f"{name}[0]", models[0]) if base is None else ("base", base)
    check_floating(like_name, like)
    for i, model in enumerate(models):
        trees.check_same(f"{name}[{i}]", model, like_name, like)
        check_floating(f"{name}[{i}]", model)


def coefficients(name: str, value: Any, n: int) -> jax.Array:
    """f32 [N] from one number for all models or N of them."""
    value = jnp.asarray(value, jnp.float32)
    if value.shape not in ((), (n,)):
        raise ValueError(f"{name}: got shape {value.shape}, takes a number or one a model, ({n},)")
    return jnp.broadcast_to(value, (n,))


def check_share(name: str, value: float) -> None:
    """ValueError unless 0 < value <= 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name}: got {value}, takes a number in (0, 1]")
