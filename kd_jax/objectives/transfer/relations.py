"""Parts that compare the examples of a batch with one another: RKD, SP, PKT, CC.

They see the whole batch: microbatches are refused. The numbers do not depend on how many devices
the batch lies on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses import batch_relations
from kd_jax.losses.batch_relations import Kernel, gaussian_kernel
from kd_jax.losses.features import direction
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import flat, linear, make_linear, size_of
from kd_jax.objectives.transfer.weighing import pairs, present
from kd_jax.types import Batch, ModelOutput, Term

GAUSSIAN = gaussian_kernel()


def distances(student_tap: str, teacher_tap: str, scale: float = 25.0) -> Part:
    """scale * `losses.batch_relations.distances`, a mean over pairs (RKD, arXiv 1904.05068)."""
    return _between(batch_relations.distances, student_tap, teacher_tap, scale)


def angles(student_tap: str, teacher_tap: str, scale: float = 50.0) -> Part:
    """scale * `losses.batch_relations.angles`, a mean over triples (RKD, arXiv 1904.05068)."""
    return _between(batch_relations.angles, student_tap, teacher_tap, scale)


def similarities(student_tap: str, teacher_tap: str, scale: float = 3000.0) -> Part:
    """scale * `losses.batch_relations.similarities`, a mean over pairs (SP, arXiv 1907.09682)."""
    return _between(batch_relations.similarities, student_tap, teacher_tap, scale)


def probabilities(student_tap: str, teacher_tap: str, scale: float = 30000.0) -> Part:
    """scale * `losses.batch_relations.probabilities`, a mean over pairs (PKT, ECCV 2018)."""
    return _between(batch_relations.probabilities, student_tap, teacher_tap, scale)


def _between(
    loss: Callable[..., jax.Array], student_tap: str, teacher_tap: str, scale: float
) -> Part:
    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        values = loss(student.taps[student_tap], teacher.taps[teacher_tap], present(batch))
        return pairs(values, batch, scale)

    return Part(part, lambda *_: {}, (student_tap,), (teacher_tap,), whole_batch=True)


def correlation_congruence(
    student_tap: str,
    teacher_tap: str,
    scale: float = 0.003,
    *,
    width: int = 128,
    kernel: Kernel = GAUSSIAN,
) -> Part:
    """scale * ||K_s - K_t||_F / B^2 of two trained linear embeddings of length 1.

    `losses.batch_relations.correlation_congruence` (CCKD, arXiv 1904.01802); B counts the examples
    that have a weight. Both embeddings are trained, the teacher's features are not. The form with
    embeddings on both sides is that of released code.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch):
        of_student, of_teacher = jax.random.split(key)
        return {
            "student": make_linear(of_student, size_of(student.taps[student_tap]), width),
            "teacher": make_linear(of_teacher, size_of(teacher.taps[teacher_tap]), width),
        }

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        s = direction(linear(aux["student"], flat(student.taps[student_tap])))
        t = direction(linear(aux["teacher"], flat(teacher.taps[teacher_tap])))
        here = present(batch)
        value = batch_relations.correlation_congruence(s, t, here, kernel=kernel)
        return Term(value, here.sum().astype(jnp.float32) ** 2, scale)

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=True)
