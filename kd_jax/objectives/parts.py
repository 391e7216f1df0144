"""What `distil` is made of: losses between a student's and a teacher's output."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.types import Batch, Context, ModelOutput, Term

PyTree = Any


class Part(NamedTuple):
    """One loss between a student's and a teacher's output.

    loss(aux, student, teacher, batch) -> Term.
    init(key, student, teacher, batch) -> aux: the part's own trainable weights (a projector), from
        outputs whose leaves may be shapes only.
    student_taps, teacher_taps: features that the loss reads.
    whole_batch: the loss couples examples; microbatches are refused.
    """

    loss: Callable[[PyTree, ModelOutput, ModelOutput, Batch], Term]
    init: Callable[[jax.Array, ModelOutput, ModelOutput, Batch], PyTree] = lambda *_: {}
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    whole_batch: bool = False


class Remembering(NamedTuple):
    """A part that keeps something from step to step, or reads the step or a random key.

    loss(aux, memory, student, teacher, batch, ctx) -> (Term, rows): rows are arrays [B, ...] that
        `update` reads, without gradient.
    init(key, student, teacher, batch) -> (aux, memory): memory is never trained.
    update(memory, rows) -> memory: once a step, after the optimiser; rows of the whole batch.
    The others as in `Part`.
    """

    loss: Callable[..., tuple[Term, dict[str, jax.Array]]]
    init: Callable[[jax.Array, ModelOutput, ModelOutput, Batch], tuple[PyTree, PyTree]]
    update: Callable[[PyTree, dict[str, jax.Array]], PyTree] = lambda memory, rows: memory
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    whole_batch: bool = False


def remembering(part: Part | Remembering) -> Remembering:
    """The part as one that remembers, if only nothing."""
    if isinstance(part, Remembering):
        return part
    plain = part

    def loss(aux, memory, student, teacher, batch, ctx):
        return plain.loss(aux, student, teacher, batch), {}

    def init(key, student, teacher, batch):
        return plain.init(key, student, teacher, batch), {}

    taps = plain.student_taps, plain.teacher_taps
    return Remembering(loss, init, lambda memory, rows: memory, *taps, plain.whole_batch)


def scheduled_part(
    part: Part | Remembering, schedule: Callable[[jax.Array], jax.Array]
) -> Remembering:
    """The part with its scale times schedule(step), such as `warm_up(steps)`."""
    inner = remembering(part)

    def loss(aux, memory, student, teacher, batch, ctx: Context):
        term, rows = inner.loss(aux, memory, student, teacher, batch, ctx)
        return term._replace(scale=term.scale * schedule(ctx.step)), rows

    return inner._replace(loss=loss)


def warm_up(steps: int) -> Callable[[jax.Array], jax.Array]:
    """min(step / steps, 1): 0 at the first step, 1 from step `steps` on."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, takes at least 1")
    return lambda step: jnp.minimum(step / steps, 1.0)
