"""Parts that regress the teacher's features: FitNets on maps of any two sizes, AB, SRD."""

import jax
import jax.numpy as jnp

from kd_jax.losses.features import activation_boundary as boundary
from kd_jax.losses.features import hint as hint_loss
from kd_jax.losses.features import log_power_distance
from kd_jax.losses.features import output_norm as norm_of
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import (
    batch_norm,
    conv,
    linear,
    make_conv,
    make_linear,
    make_norm,
    transposed_conv,
)
from kd_jax.objectives.transfer.weighing import as_many, present, same_places, whole
from kd_jax.types import Batch, ModelOutput, PyTree, Term, weighted_sum


def map_hint(student_tap: str, teacher_tap: str, scale: float = 100.0) -> Part:
    """scale * the mean over elements of (relu(norm(conv(f_s))) - f_t)^2, a mean over examples.

    Square maps. The convolution is 3x3 with stride 2 where the student's side is twice the
    teacher's, a transposed 4x4 with stride 2 where it is half, else of size 1 + H_s - H_t without
    padding. The normalisation is the batch's, so that examples are coupled. The ReLU is for
    features of the teacher that are after one. `objectives.distil.hint` is the linear regressor.
    Romero et al. 2015, arXiv 1412.6550, as compared in mdistiller (weight 100).
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        s, t = student.taps[student_tap].shape, teacher.taps[teacher_tap].shape
        size = _size(s[1], t[1])
        return {"conv": make_conv(key, size, s[-1], t[-1]), "norm": make_norm(t[-1])}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x, target = student.taps[student_tap], teacher.taps[teacher_tap]
        ours, theirs = x.shape[1], target.shape[1]
        if ours == 2 * theirs:
            y = conv(aux["conv"], x, stride=2, padding=1)
        elif 2 * ours == theirs:
            y = transposed_conv(aux["conv"], x, stride=2, padding=1)
        else:
            y = conv(aux["conv"], x)
        y = jax.nn.relu(batch_norm(aux["norm"], y, present(batch)))
        return weighted_sum(hint_loss(y, target), batch["weights"], scale)

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=True)


def activation_boundary(
    student_taps: tuple[str, ...],
    teacher_taps: tuple[str, ...],
    scale: float = 1.0,
    *,
    margin: float = 1.0,
) -> Part:
    """scale * the sum over stages of `losses.features.activation_boundary`: AB, in pairs of taps.

    Taps are before the activation. A connector, a trained 1x1 convolution normalised by the batch,
    brings the student's to the teacher's channels. Trained with it alone first, then with KD. Heo
    et al. 2019, arXiv 1811.03233, by torchdistill.
    """
    as_many(student_taps, teacher_taps)
    stages = tuple(zip(student_taps, teacher_taps, strict=True))

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        def connector(i: int, ours: str, theirs: str) -> PyTree:
            s, t = student.taps[ours].shape[-1], teacher.taps[theirs].shape[-1]
            kernel = make_linear(jax.random.fold_in(key, i), s, t, bias=False)
            return {"linear": kernel, "norm": make_norm(t)}

        return {f"stage_{i}": connector(i, *taps) for i, taps in enumerate(stages)}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        here, total = present(batch), jnp.zeros(len(batch["weights"]))
        for i, (ours, theirs) in enumerate(stages):
            x, target = same_places(student.taps[ours], teacher.taps[theirs])
            weights = aux[f"stage_{i}"]
            x = batch_norm(weights["norm"], linear(weights["linear"], x), here)
            total += boundary(x, target, margin=margin)
        return weighted_sum(total, batch["weights"], scale)

    return Part(part, init, student_taps, teacher_taps, whole_batch=True)


def log_power(
    student_tap: str, teacher_tap: str, scale: float = 2.0, *, power: float = 4.0
) -> Part:
    """scale * `losses.features.log_power_distance` of the whole batch: SRD, of vectors [B, D].

    The student's features go through a trained linear map, and both sides are normalised by the
    batch (without a scale and a shift, 1e-4 added to the variance). Examples that have a weight
    count alike. Beside it stand the label loss and `distil.soft_labels()`, at temperature 1, of the
    student's own logits: that is all of the method.
    Miles and Mikolajczyk 2024, arXiv 2303.11098, by released code: scale 2, power 4, pooled
    features of the last stage.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        s, t = student.taps[student_tap].shape[-1], teacher.taps[teacher_tap].shape[-1]
        # The normalisation takes off what a bias would add.
        return make_linear(key, s, t, bias=False)

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        here, target = present(batch), teacher.taps[teacher_tap]
        plain = make_norm(target.shape[-1])
        x = batch_norm(plain, linear(aux, student.taps[student_tap]), here, 1e-4)
        target = batch_norm(plain, target, here, 1e-4)
        return whole(log_power_distance(x, target, here, power=power), batch, scale)

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=True)


def output_norm(student_tap: str, scale: float, *, power: int = 1) -> Part:
    """scale * `losses.features.output_norm` of the batch's features: torchdistill's regulariser."""

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        value = norm_of(student.taps[student_tap], present(batch), power=power)
        return whole(value, batch, scale)

    return Part(part, student_taps=(student_tap,), whole_batch=True)


def _size(ours: int, theirs: int) -> int:
    if ours == 2 * theirs:
        return 3
    if 2 * ours == theirs:
        return 4
    if ours < theirs:
        raise ValueError(
            f"student_tap: got a map of side {ours}, takes half the teacher's {theirs} or more"
        )
    return 1 + ours - theirs
