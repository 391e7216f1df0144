"""Transfer between any pretrained models, by a partition of the data (arXiv 2310.17653).

Teachers one after another: `with_initial` of the next teacher and of the student as the last
training left it. Several at once: `with_teachers`. One student a teacher, then a soup of them:
`merging.average`. Slow weights that follow the trained ones: `steps.with_ema` with `every`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from kd_jax.losses.partition import (
    chosen_kl,
    is_surest,
    knows_label_best,
    partitioned_kl,
    teacher_is_surer,
    teacher_knows_label,
)
from kd_jax.objectives.parts import Part
from kd_jax.types import Batch, Model, ModelOutput, Term, weighted_sum


def with_initial(teacher: Model, student: Model) -> Model:
    """The teacher with a tap "initial": logits of the student as it was, of the same images.

    Weights: {"teacher", "teacher_state", "initial", "initial_state"}, of which the last two are the
    student's copy at the start; both run in evaluation mode.
    """

    def init(key):
        one, two = jax.random.split(key)
        return {
            "teacher": teacher.init(one),
            "teacher_state": teacher.state(),
            "initial": student.init(two),
            "initial_state": student.state(),
        }

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        asked = tuple(t for t in taps if t != "initial")
        output = teacher.apply(
            params["teacher"], inputs, state=params["teacher_state"], taps=asked, add=add
        )
        found = dict(output.taps)
        if "initial" in taps:
            own = student.apply(params["initial"], inputs, state=params["initial_state"])
            found["initial"] = own.head.logits()
        return output._replace(taps=found, state=state)

    return Model(init, apply)


def partitioned(
    scale: float = 1.0,
    *,
    temperature: float = 1.0,
    chosen: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = teacher_knows_label,
) -> Part:
    """scale * T^2 * `losses.partition.partitioned_kl`, a mean over examples; no label loss.

    For a teacher made by `with_initial`. chosen: (teacher's logits, initial student's, targets) ->
    bool [B], the examples that the teacher teaches; `surer` needs no labels. T^2 is UNVERIFIED.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        s, t, initial = student.head.logits(), teacher.head.logits(), teacher.taps["initial"]
        mask = chosen(t, initial, batch["targets"])
        values = partitioned_kl(s, t, initial, mask, temperature=temperature)
        return weighted_sum(values, batch["weights"], scale * temperature**2)

    return Part(part, teacher_taps=("initial",))


def surer(teacher: jax.Array, initial: jax.Array, targets: jax.Array) -> jax.Array:
    """`losses.partition.teacher_is_surer`, whatever the targets."""
    return teacher_is_surer(teacher, initial)


def with_teachers(student: Model, teachers: Mapping[str, Model]) -> Model:
    """The student as it was, with a tap "sources" f32 [B, N, C]: its logits and the teachers'.

    Source 0 is the student, the teachers follow in their order. Weights: {"initial":
    {"weights", "state"}, "teachers": {name: {"weights", "state"}}}; all run in evaluation mode.
    """
    if not teachers:
        raise ValueError("teachers: got none, takes at least one")

    def init(key):
        def one(i: int, model: Model):
            return {"weights": model.init(jax.random.fold_in(key, i)), "state": model.state()}

        made = {name: one(i, model) for i, (name, model) in enumerate(teachers.items(), 1)}
        return {"initial": one(0, student), "teachers": made}

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        own, asked = params["initial"], tuple(t for t in taps if t != "sources")
        output = student.apply(own["weights"], inputs, state=own["state"], taps=asked, add=add)
        found = dict(output.taps)
        if "sources" in taps:
            logits = [output.head.logits()]
            for name, model in teachers.items():
                theirs = params["teachers"][name]
                made = model.apply(theirs["weights"], inputs, state=theirs["state"])
                logits.append(made.head.logits())
            found["sources"] = jnp.stack(logits, 1)
        return output._replace(taps=found, state=state)

    return Model(init, apply)


def partitioned_among(
    scale: float = 1.0,
    *,
    temperature: float = 1.0,
    chosen: Callable[[jax.Array, jax.Array], jax.Array] = knows_label_best,
) -> Part:
    """scale * T^2 * `losses.partition.chosen_kl`, a mean over examples; no label loss.

    For a teacher made by `with_teachers`. chosen: (logits [N, B, C], targets) -> int [B], the
    source of each example; `surest` needs no labels. With one teacher it is `partitioned`.
    The paper's parallel form is told as an argmax over teachers and the initial student: that the
    compared number is the one of the form with one teacher is INFERRED.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        sources = jnp.swapaxes(teacher.taps["sources"], 0, 1)
        taught = chosen(sources, batch["targets"])
        values = chosen_kl(student.head.logits(), sources, taught, temperature=temperature)
        return weighted_sum(values, batch["weights"], scale * temperature**2)

    return Part(part, teacher_taps=("sources",))


def surest(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`losses.partition.is_surest`, whatever the targets."""
    return is_surest(logits)
