"""Weighted sums of row-wise losses over a large vocabulary, with the gradient made on the way.

Of a sum over tokens with weights that are known, the derivative of every token is known in the
forward pass, while its logits are there. It is taken then: the logits are made where
`streaming.over_vocabulary`, which gives every position's value, makes them again in the backward
pass. Of a student with V tokens and width D that is 6 D V FLOPs a token, and 2 D V more
for a teacher as wide, against 8 D V and 4 D V more. What is kept until the backward pass is the
gradient itself, of the hidden states and the unembedding.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import custom_vjp_primal_tree_values
from jaxtyping import Array, Float

from kd_jax.axes import mesh_axes, named, ways
from kd_jax.losses._pieces import bend, beside, check_head, curve_of, multiply, pieces_of, split
from kd_jax.losses.streaming import Row, over_vocabulary
from kd_jax.types import Head, Logits, Term, weighted_sum

PyTree = Any


def weighted_sum_over_vocabulary(
    row: Row,
    head: Head,
    weights: Float[Array, "B T"],
    rows: PyTree = (),
    fixed: PyTree = (),
    *,
    others: Sequence[Head] = (),
    scale: jax.Array | float = 1.0,
    chunk: int | None = None,
) -> Term:
    """Term(sum of weights * row(logits [B, C, V], others' logits, rows, fixed), sum of weights).

    What `weighted_sum(over_vocabulary(row, head, rows, fixed, others=others), weights, scale)` is,
    with the same arguments: weights [B, T] have no gradient, and where one is 0 the row's value
    counts as 0. Memory: the logits of a piece of T at a time (`chunk` positions), those of others
    and what row makes of them; and the gradient, of which the unembedding's is summed in float32,
    on every shard of the batch by itself, and added up over shards once. Reverse mode only.
    """
    check_head("head", head)
    if weights.shape != head[0].shape[:2]:
        raise ValueError(
            f"weights: got shape {weights.shape}, takes [B, T] of the head, {head[0].shape[:2]}"
        )
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    if isinstance(head, Logits):
        values = over_vocabulary(row, head, rows, fixed, others=others, chunk=chunk)
        return weighted_sum(values, weights, scale)
    pieces = pieces_of(head, chunk)
    whole, rows, fixed = beside(row, others, rows, fixed, pieces=pieces)
    cut = functools.partial(split, pieces=pieces)
    # Gathered once, where it is cut along its width: not piece by piece.
    unembedding = named(head.unembedding, "vocab", None)
    pieced = cut(weights), rows
    total = _summed(whole, cut(head.hidden), unembedding, curve_of(head), pieced, fixed)
    return Term(total, weights.sum(), scale)


def _value(row, hidden, unembedding, curve, rows, fixed) -> jax.Array:
    """hidden [n, B, C, D], unembedding [V, D], rows: (weights [n, B, C], others [n, B, C, ...])."""

    def one(total: jax.Array, x: PyTree) -> tuple[jax.Array, None]:
        h, (w, r) = x
        values = row(bend(multiply(h, unembedding), curve), r, fixed)
        return total + weighted_sum(values, w).total, None

    return jax.lax.scan(one, jnp.zeros(()), (hidden, rows))[0]


_summed = jax.custom_vjp(_value, nondiff_argnums=(0,))


def _forward(row, hidden, unembedding, curve, rows, fixed):
    wanted = tuple(
        any(x.perturbed for x in jax.tree.leaves(part)) for part in (hidden, unembedding, curve)
    )
    values = custom_vjp_primal_tree_values((hidden, unembedding, curve, rows, fixed))
    return _value_and_gradient(row, wanted, *values)


def _backward(row, gradients: PyTree, g: jax.Array):
    return (*jax.tree.map(lambda x: (g * x).astype(x.dtype), gradients), None, None)


_summed.defvjp(_forward, _backward, symbolic_zeros=True)


def _value_and_gradient(row, wanted, hidden, unembedding, curve, rows, fixed):
    """The sum, and its gradient for hidden, unembedding and curve; None for those not wanted."""
    want_hidden, want_unembedding, want_curve = wanted
    # Products of the gradient take operands as wide as the forward's and sum in float32.
    operand = jnp.result_type(hidden, unembedding)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    shards = _Shards(*hidden.shape[1:3])

    # The checkpoint is for second derivatives, which would store every piece's logits without it.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(sums: PyTree, x: PyTree) -> tuple[PyTree, jax.Array | None]:
        h, (w, r) = x
        z = multiply(h, unembedding)
        value, pull = jax.vjp(
            lambda z, c: weighted_sum(row(bend(z, c), r, fixed), w).total, z, curve
        )
        dz, d_curve = pull(jnp.ones(()))
        dz = dz.astype(operand)
        d_unembedding = None
        if want_unembedding:
            apart = einsum("sblcv,sblcd->slvd", shards.cut(dz, "vocab"), shards.cut(h, None))
            d_unembedding = shards.placed(apart)
        d_hidden = None
        if want_hidden:
            d_hidden = einsum("bcv,vd->bcd", dz, unembedding).astype(hidden.dtype)
        parts = (value, d_unembedding, d_curve if want_curve else None)
        return jax.tree.map(jnp.add, sums, parts), d_hidden

    zeros = (
        jnp.zeros(()),
        shards.placed(jnp.zeros((*shards.counts, *unembedding.shape), jnp.float32))
        if want_unembedding
        else None,
        jax.tree.map(jnp.zeros_like, curve) if want_curve else None,
    )
    (total, d_unembedding, d_curve), d_hidden = jax.lax.scan(one, zeros, (hidden, rows))
    if d_unembedding is not None:
        d_unembedding = d_unembedding.sum((0, 1)).astype(unembedding.dtype)
    return total, (d_hidden, d_unembedding, d_curve)


class _Shards:
    """How a piece [B, C, ...] lies on the mesh in context; counts: of B and of C, 1 for whole.

    A sum over B and C in a loop would be added up over devices in every turn. With their shards as
    axes of their own it stays where it is, and is added up when the loop is over.
    """

    def __init__(self, batch: int, length: int):
        sizes = (("batch", batch), ("length", length))
        cuts = [name if size % ways(mesh_axes(name)) == 0 else None for name, size in sizes]
        self._names = cuts
        self.counts = tuple(ways(mesh_axes(name)) if name else 1 for name in cuts)

    def cut(self, x: jax.Array, last: str | None) -> jax.Array:
        """[B, C, X] -> [shards of B, B', shards of C, C', X]."""
        (of_batch, of_length), (batch, length, width) = self.counts, x.shape
        x = x.reshape(of_batch, batch // of_batch, of_length, length // of_length, width)
        return named(x, self._names[0], None, self._names[1], None, last)

    def placed(self, x: jax.Array) -> jax.Array:
        """[shards of B, shards of C, V, D], each on its own devices."""
        return named(x, *self._names, "vocab", None)
