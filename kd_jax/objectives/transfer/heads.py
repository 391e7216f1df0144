"""Parts with classifiers of their own on the student's features: dual heads, OFA's exits, ND."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.convolution import depthwise
from kd_jax.losses.binary import binary_kl_of_difference
from kd_jax.losses.logits import amplified_target
from kd_jax.losses.prototypes import norm_and_direction
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import (
    batch_norm,
    linear,
    make_conv,
    make_linear,
    make_norm,
)
from kd_jax.objectives.transfer.weighing import present
from kd_jax.types import Batch, ModelOutput, PyTree, Term, weighted_sum


def auxiliary_head(
    student_tap: str,
    scale: float = 1.0,
    *,
    temperature: float = 2.0,
    hidden: int | None = None,
    loss: Callable[..., jax.Array] = binary_kl_of_difference,
) -> Part:
    """scale * T^2 * loss(logits of a second head, teacher's logits), a mean over examples.

    The head is linear on the student's tap [B, D], or with `hidden` units, normalised by the batch,
    and ReLU; it is trained with the student, whose own head the loss does not reach, and dropped.
    Beside it stands the label loss; where the two disagree,
    `gradients.surgery(("ce", "kd"), yield_to_first)`. loss: `losses.binary.binary_kl` is the other.
    Yang et al. 2024, arXiv 2411.08937: T 2, hidden 200 with a dropout of 0.1, which is not here.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        inputs, classes = student.taps[student_tap].shape[-1], _classes(teacher)
        if hidden is None:
            return {"head": make_linear(key, inputs, classes)}
        first, second = jax.random.split(key)
        body = {"hidden": make_linear(first, inputs, hidden, bias=False), "norm": make_norm(hidden)}
        return body | {"head": make_linear(second, hidden, classes)}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x = student.taps[student_tap]
        if hidden is not None:
            x = batch_norm(aux["norm"], linear(aux["hidden"], x), present(batch))
            x = jax.nn.relu(x)
        values = loss(linear(aux["head"], x), teacher.head.logits(), temperature=temperature)
        return weighted_sum(values, batch["weights"], scale * temperature**2)

    return Part(part, init, (student_tap,), whole_batch=hidden is not None)


def aspects(student_tap: str, scale: float = 4.0) -> Part:
    """scale * the mean over questions of the binary cross-entropy with batch["aspects"] [B, Q].

    aspects: probabilities of yes, in [0, 1], of Q questions about each image. They are answered by
    a linear head of its own on the tap [B, D], which is what Q more outputs of a linear classifier
    are; predictions do not read it. Targets are soft: nothing is rounded.
    Lee et al. 2025 (multi-aspect distillation), arXiv 2501.13341, by released code (Q 50).
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        return make_linear(key, student.taps[student_tap].shape[-1], batch["aspects"].shape[-1])

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        z, q = linear(aux, student.taps[student_tap]), batch["aspects"].astype(jnp.float32)
        values = -(q * jax.nn.log_sigmoid(z) + (1 - q) * jax.nn.log_sigmoid(-z)).mean(-1)
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, init, (student_tap,))


def exits(
    student_taps: tuple[str, ...],
    blocks: tuple[int, ...],
    scale: float = 1.0,
    *,
    width: int,
    power: float = 1.0,
    temperature: float = 1.0,
) -> Part:
    """scale * the sum over taps of `losses.logits.amplified_target` of an exit's logits: OFA.

    An exit on a map has as many `blocks` of two depthwise separable 3x3 convolutions, each of which
    halves the map and doubles its channels, the last to `width`; none is a 1x1 convolution to that.
    The mean over places and a linear head follow. Convolutions are normalised by the batch. Tokens
    [B, N, D] have no blocks here; `token_exits` has transformer blocks for them. The same loss on
    the student's own logits is `soft` with `amplified_target`.
    Hao et al. 2023, arXiv 2310.19444, by released code: stages 1 to 4 have 3, 2, 1 and no blocks.
    """
    if len(blocks) != len(student_taps):
        raise ValueError(f"blocks: got {blocks}, takes one number a tap of {student_taps}")

    def widths(inputs: int, count: int) -> list[int]:
        return [inputs * 2**i for i in range(count)] + [width]

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        def one(key, tap: str, count: int) -> PyTree:
            shape = student.taps[tap].shape
            first, second = jax.random.split(key)
            made = {"head": make_linear(second, width, _classes(teacher))}
            if not count:
                return made | {"in": make_linear(first, shape[-1], width)}
            sizes = widths(shape[-1], count)
            return made | {
                f"block_{i}": _make_separable(jax.random.fold_in(first, i), sizes[i], sizes[i + 1])
                for i in range(count)
            }

        return {
            f"exit_{i}": one(jax.random.fold_in(key, i), tap, count)
            for i, (tap, count) in enumerate(zip(student_taps, blocks, strict=True))
        }

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        here, target = present(batch), teacher.head.logits()
        total = jnp.zeros(len(batch["weights"]))
        for i, (tap, count) in enumerate(zip(student_taps, blocks, strict=True)):
            weights, x = aux[f"exit_{i}"], student.taps[tap]
            for j in range(count):
                x = _separable(weights[f"block_{j}"], x, here)
            x = x if count else linear(weights["in"], x)
            logits = linear(weights["head"], x.reshape(x.shape[0], -1, x.shape[-1]).mean(1))
            total += amplified_target(
                logits, target, batch["targets"], power=power, temperature=temperature
            )
        return weighted_sum(total, batch["weights"], scale)

    return Part(part, init, student_taps, whole_batch=any(blocks))


def _make_separable(key: jax.Array, inputs: int, outputs: int) -> PyTree:
    keys = jax.random.split(key, 4)
    return {
        "depth_0": make_conv(keys[0], 3, 1, inputs),
        "point_0": make_linear(keys[1], inputs, inputs, bias=False),
        "norm_0": make_norm(inputs),
        "depth_1": make_conv(keys[2], 3, 1, inputs),
        "point_1": make_linear(keys[3], inputs, outputs, bias=False),
        "norm_1": make_norm(outputs),
    }


def _separable(weights: PyTree, x: jax.Array, here: jax.Array) -> jax.Array:
    for i, stride in enumerate((2, 1)):
        x = depthwise(x.astype(jnp.float32), weights[f"depth_{i}"]["kernel"], stride)
        x = linear(weights[f"point_{i}"], x)
        x = jax.nn.relu(batch_norm(weights[f"norm_{i}"], x, here))
    return x


def norm_direction(
    student_tap: str,
    teacher_tap: str,
    means: jax.Array,
    scale: float = 2.0,
    *,
    project: bool = False,
) -> Part:
    """scale * `losses.prototypes.norm_and_direction` of vectors [B, D], a mean over examples: ND.

    means [C, D]: `losses.prototypes.class_means` of the teacher's features of the training set;
    they become part of the program. project, where widths differ: the student's features are
    normalised by the batch and go through a trained linear map; the released one has a dropout of
    0.5 between the two.
    Wang et al. 2023 (KD++), arXiv 2305.17007, beside KD at temperature 4 with a warm-up.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        inputs, outputs = student.taps[student_tap].shape[-1], teacher.taps[teacher_tap].shape[-1]
        if not project:
            return {}
        return {"norm": make_norm(inputs), "linear": make_linear(key, inputs, outputs)}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x, target = student.taps[student_tap], teacher.taps[teacher_tap]
        if project:
            x = linear(aux["linear"], batch_norm(aux["norm"], x, present(batch)))
        values = norm_and_direction(x, target, means, batch["targets"])
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=project)


def _classes(output: ModelOutput) -> int:
    return jax.eval_shape(lambda o: o.head.logits(), output).shape[-1]
