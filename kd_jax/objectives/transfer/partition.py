"""Transfer between any two pretrained models, by a partition of the data (arXiv 2310.17653)."""

from collections.abc import Callable

import jax

from kd_jax.losses.partition import partitioned_kl, teacher_is_surer, teacher_knows_label
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
