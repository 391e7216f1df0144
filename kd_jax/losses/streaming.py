"""Row-wise losses over a vocabulary too large to write out: no [B, T, V], forward or backward.

A row-wise loss maps one position's logits (and what goes with them: a label, the teacher's
logits) to a number. `over_vocabulary` applies one to a head in n pieces of at most `chunk`
positions along T. B stays whole and piece i is positions i::n, so that a batch sharded over devices
stays where it is, along T too; a vocabulary sharded over devices works as well. For a factored head
the backward pass makes each piece's logits again. Both passes may be vmapped, and differentiated
once more (unrolled gradient rules) at the same memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks
from kd_jax.losses._pieces import (
    bend,
    beside,
    check_head,
    check_targets,
    curve_of,
    extent,
    join,
    multiply,
    pieces_of,
    split,
)
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.divergences import forward_kl
from kd_jax.types import Head, Logits

PyTree = Any
# (logits f32 [B, C, V], others' logits, rows [B, C, ...], fixed) -> [B, C]
Row = Callable[[jax.Array, tuple[jax.Array, ...], Any, Any], Any]

# What jax.checkpoint calls the part of a program that is computed a second time.
RECOMPUTED = "rematted_computation"


def token_log_probs(
    head: Head, targets: Int[Array, "B T"], *, chunk: int | None = None
) -> Float[Array, "B T"]:
    """log softmax(logits)_y for every position, in nats: f32 [B, T], unreduced.

    head: `Logits` [B, T, V], used as they are; or `Factored`, of which at most `chunk` positions
        along T are multiplied out at a time, [B, chunk, V] in float32; by default pieces of about
        128 MiB on each device.
    targets: int [B, T]; position t holds the label of logits t, nothing is shifted. An id outside
        [0, V), such as -100, gives -logsumexp: finite, and for zero weights only.

    Gradients of a factored head: those of `unembedding` are summed in float32 over the chunks, and
    neither computed nor stored when it is not differentiated (LoRA on a frozen head); each has the
    dtype of its input. Reverse mode only at first order (custom_vjp).
    """
    check_head("head", head)
    check_targets(head, targets)
    if isinstance(head, Logits):
        return label_log_probs(head.z, targets)
    return over_vocabulary(_label_row, head, targets, chunk=chunk)


def forward_token_log_probs(
    head: Head, targets: Int[Array, "B T"], *, chunk: int | None = None
) -> Float[Array, "B T"]:
    """`token_log_probs` for forward mode (jax.jvp), which its own gradient does not allow.

    The same values, a piece at a time. Reverse mode works too, but keeps every piece's logits.
    """
    check_head("head", head)
    check_targets(head, targets)
    if isinstance(head, Logits):
        return label_log_probs(head.z, targets)
    cut = functools.partial(split, pieces=pieces_of(head, chunk))

    def row(logits: jax.Array, targets: jax.Array, fixed: PyTree) -> jax.Array:
        return label_log_probs(logits, targets)

    values = _stream(row, cut(head.hidden), head.unembedding, curve_of(head), cut(targets), ())
    return join(values, length=targets.shape[1])


def token_forward_kl(
    student: Head, teacher: Head, *, temperature: ArrayLike = 1.0, chunk: int | None = None
) -> Float[Array, "B T"]:
    """KL(p || q) of every position, p = softmax(teacher / tau), q = softmax(student / tau).

    student, teacher: heads of either kind over the same [B, T] and V, widths may differ ->
        f32 [B, T], nats, unreduced, not multiplied by tau**2 (`divergences.forward_kl`).
    The gradient goes to the student alone: teacher and temperature are stopped. Memory and
    gradients of a factored student as in `token_log_probs`.
    """
    check_head("student", student)
    check_head("teacher", teacher)
    _checks.positive("temperature", temperature)
    ours, theirs = extent(student), extent(teacher)
    if ours != theirs:
        raise ValueError(f"teacher: got [B, T, V] of {theirs}, takes the student's, {ours}")
    fixed = jax.lax.stop_gradient(temperature)
    return over_vocabulary(_forward_kl_row, student, (), fixed, others=(teacher,), chunk=chunk)


class TokenStatistics(NamedTuple):
    """What evaluation asks of every position, each f32 [B, T].

    log_prob: log p_y of the target y. mean, variance: sum_v p_v log p_v and
    sum_v p_v (log p_v)^2 - mean^2, of the prediction itself. correct: 1 where y is the first of
    the likeliest tokens, else 0.
    """

    log_prob: jax.Array
    mean: jax.Array
    variance: jax.Array
    correct: jax.Array


def token_statistics(
    head: Head, targets: Int[Array, "B T"], *, chunk: int | None = None
) -> TokenStatistics:
    """The statistics of every position in one pass over the head; no gradient.

    Arguments as `token_log_probs`. An id outside [0, V) is never correct.
    """
    check_head("head", head)
    check_targets(head, targets)
    return over_vocabulary(_statistics_row, jax.lax.stop_gradient(head), targets, chunk=chunk)


def _label_row(logits: jax.Array, others: PyTree, targets: jax.Array, fixed: PyTree) -> jax.Array:
    return label_log_probs(logits, targets)


def _forward_kl_row(
    logits: jax.Array, others: tuple[jax.Array, ...], rows: PyTree, temperature: ArrayLike
) -> jax.Array:
    return forward_kl(logits, others[0], temperature=temperature)


def _statistics_row(
    logits: jax.Array, others: PyTree, targets: jax.Array, fixed: PyTree
) -> TokenStatistics:
    log_probs = jax.nn.log_softmax(logits)
    p = jnp.exp(log_probs)
    # 0 log 0 = 0: a logit of -inf is a token that is never drawn.
    kept = jnp.where(p > 0, log_probs, 0.0)
    mean = (p * kept).sum(-1)
    # Centred: the difference of two moments loses all digits where the spread is small.
    variance = (p * jnp.square(kept - mean[..., None])).sum(-1)
    correct = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
    return TokenStatistics(label_log_probs(logits, targets), mean, variance, correct)


def over_vocabulary(
    row: Row,
    head: Head,
    rows: PyTree = (),
    fixed: PyTree = (),
    *,
    others: Sequence[Head] = (),
    chunk: int | None = None,
) -> Any:
    """row(logits [B, C, V], others' logits, rows [B, C, ...], fixed) over pieces of T: f32 [B, T].

    head: whose gradient is taken. rows: arrays [B, T, ...] that are cut like the head; fixed:
    what every piece sees whole; others: further heads [B, T, .] (a teacher's, a reference's),
    their logits in float32 beside the head's. rows, fixed and others get no gradient.
    row must be defined for all-zero rows, with which T is padded, and close over no traced value.
    It may give a tuple of arrays [B, C, ...].
    chunk: at most so many positions of T are multiplied out at a time; None: as many as make about
        128 MiB of logits on each device, and no fewer than 256 tokens.
    """
    pieces = pieces_of(head, chunk)
    whole, rows, fixed = beside(row, others, rows, fixed, pieces=pieces)
    cut = functools.partial(split, pieces=pieces)
    if isinstance(head, Logits):
        one = jax.checkpoint(lambda z, r: whole(z.astype(jnp.float32), r, fixed), prevent_cse=False)
        values = jax.lax.map(lambda x: one(*x), (cut(head.z), rows))
    else:
        values = _streamed(whole, cut(head.hidden), head.unembedding, curve_of(head), rows, fixed)
    return jax.tree.map(functools.partial(join, length=head[0].shape[1]), values)


def _stream(
    row: Callable[..., Any],
    hidden: jax.Array,
    unembedding: jax.Array,
    curve: PyTree,
    rows: PyTree,
    fixed: PyTree,
) -> Any:
    """hidden [n, B, C, D], unembedding [V, D], rows [n, B, C, ...] -> f32 [n, B, C]."""

    def one(x: PyTree) -> Any:
        h, r = x
        return row(bend(multiply(h, unembedding), curve), r, fixed)

    return jax.lax.map(one, (hidden, rows))


_streamed = jax.custom_vjp(_stream, nondiff_argnums=(0,))


def _forward(
    row: Callable[..., Any],
    hidden: Any,
    unembedding: Any,
    curve: PyTree,
    rows: PyTree,
    fixed: PyTree,
):
    # Residuals are arrays, so what is wanted is told by the tree's shape: () is yes, None is no.
    wanted = tuple(
        () if any(x.perturbed for x in jax.tree.leaves(part)) else None
        for part in (hidden, unembedding, curve)
    )
    values = custom_vjp_primal_tree_values((hidden, unembedding, curve, rows, fixed))
    return _streamed(row, *values), (values, wanted)


def _backward(row: Callable[..., Any], residuals: PyTree, g: PyTree):
    (hidden, unembedding, curve, rows, fixed), wanted = residuals
    # Of several values, those without gradient.
    g = jax.tree.map(lambda x: jnp.zeros(x.shape) if isinstance(x, SymbolicZero) else x, g)
    want_hidden, want_unembedding, want_curve = (mark is not None for mark in wanted)
    # Products of the backward pass take operands as wide as the forward's and sum in float32.
    operand = jnp.result_type(hidden, unembedding)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    # The checkpoint is for second derivatives, which would store every piece's logits without it.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(sums: PyTree, x: PyTree) -> tuple[PyTree, jax.Array | None]:
        h, r, g_piece = x
        with jax.named_scope(RECOMPUTED):
            z = multiply(h, unembedding)
            _, pull = jax.vjp(lambda z, c: row(bend(z, c), r, fixed), z, curve)
        dz, d_curve = pull(g_piece)
        dz = dz.astype(operand)
        d_unembedding = einsum("bcv,bcd->vd", dz, h) if want_unembedding else None
        d_hidden = None
        if want_hidden:
            d_hidden = einsum("bcv,vd->bcd", dz, unembedding).astype(hidden.dtype)
        parts = (d_unembedding, d_curve if want_curve else None)
        return jax.tree.map(jnp.add, sums, parts), d_hidden

    zeros = (
        jnp.zeros(unembedding.shape, jnp.float32) if want_unembedding else None,
        jax.tree.map(jnp.zeros_like, curve) if want_curve else None,
    )
    (d_unembedding, d_curve), d_hidden = jax.lax.scan(one, zeros, (hidden, rows, g))
    if d_unembedding is not None:
        d_unembedding = d_unembedding.astype(unembedding.dtype)
    return d_hidden, d_unembedding, d_curve, None, None


_streamed.defvjp(_forward, _backward, symbolic_zeros=True)
