"""Parts whose student predicts a distribution of the teacher's features: VID, PAD."""

import jax
import jax.numpy as jnp

from kd_jax.losses.probabilistic import precision_weighted as precision
from kd_jax.losses.probabilistic import raw_variance_of, variational_information
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import batch_norm, linear, make_linear, make_norm
from kd_jax.objectives.transfer.weighing import present, same_places
from kd_jax.types import Batch, ModelOutput, PyTree, Term, weighted_sum


def variational(
    student_tap: str, teacher_tap: str, scale: float = 1.0, *, variance: float = 5.0
) -> Part:
    """scale * `losses.probabilistic.variational_information` of a trained mean and variance.

    The mean is three linear maps over channels (1x1 convolutions without bias) with ReLU between;
    the variance, one a channel, starts at `variance` and is trained. One released code leaves it
    out of the optimiser. On maps of different sizes the larger is average-pooled. Ahn et al. 2019,
    arXiv 1904.05835.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        inputs = student.taps[student_tap].shape[-1]
        outputs = teacher.taps[teacher_tap].shape[-1]
        widths = (inputs, outputs, outputs, outputs)
        keys = jax.random.split(key, 3)
        layers = {
            f"layer_{i}": make_linear(keys[i], widths[i], widths[i + 1], bias=False)
            for i in range(3)
        }
        return layers | {"raw_variance": jnp.full(outputs, raw_variance_of(variance))}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x, target = same_places(student.taps[student_tap], teacher.taps[teacher_tap])
        for i in range(3):
            x = linear(aux[f"layer_{i}"], jax.nn.relu(x) if i else x)
        values = variational_information(x, target, aux["raw_variance"])
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, init, (student_tap,), (teacher_tap,))


def precision_weighted(student_tap: str, teacher_tap: str, scale: float = 1.0) -> Part:
    """scale * `losses.probabilistic.precision_weighted` of vectors [B, D], a mean over examples.

    The log-variances are a trained linear map of the student's features, normalised by the batch.
    It starts from a student trained with the plain squared error (`matched` with `hint`). Zhang et
    al. 2020 (PAD), ECCV, by torchdistill.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        inputs = student.taps[student_tap].shape[-1]
        outputs = teacher.taps[teacher_tap].shape[-1]
        return {"linear": make_linear(key, inputs, outputs, bias=False), "norm": make_norm(outputs)}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x = student.taps[student_tap]
        variance = batch_norm(aux["norm"], linear(aux["linear"], x), present(batch))
        values = precision(x, teacher.taps[teacher_tap], variance)
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=True)
