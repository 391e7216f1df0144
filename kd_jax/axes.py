"""Names of array axes, resolved on the mesh in context.

Pure functions name the axes of what they compute and never mention a mesh. Without flax's logical
axis rules and a mesh in context the names do nothing.
"""

import math

import jax
from flax.core.spmd import get_logical_axis_rules
from flax.linen import spmd


def named(x: jax.Array, *axes: str | None) -> jax.Array:
    """x with its axes named for sharding.

    Does nothing unless flax's logical axis rules and a mesh (`jax.set_mesh`) are in context.
    """
    return spmd.with_logical_constraint(x, axes)


def mesh_axes(name: str) -> str | tuple[str, ...] | None:
    """The mesh axes that a logical name lies on, in the rules in context; None for no rules."""
    rules = get_logical_axis_rules()
    if jax.sharding.get_abstract_mesh().empty or not rules:
        return None
    return (spmd.logical_to_mesh_axes((name,), rules) or (None,))[0]


def ways(axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts these axes of the mesh in context cut a dimension."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in names)
