"""Parts on maps: attention transfer, FSP, knowledge review, relations between channels."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses import maps
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import (
    batch_norm,
    conv,
    linear,
    make_conv,
    make_linear,
    make_norm,
)
from kd_jax.objectives.transfer.weighing import as_many, present, same_places
from kd_jax.types import Batch, ModelOutput, PyTree, Term, weighted_sum

FeatureLoss = Callable[[jax.Array, jax.Array], jax.Array]


def attention(
    student_taps: tuple[str, ...],
    teacher_taps: tuple[str, ...],
    scale: float = 1000.0,
    *,
    power: int = 2,
    loss: Callable[..., jax.Array] = maps.attention,
) -> Part:
    """scale * the sum over stages of `losses.maps.attention`, a mean over examples.

    Taps in pairs, one a stage. loss: `maps.attention_distance` for the form of the paper, with a
    scale of its own. Zagoruyko and Komodakis 2017, arXiv 1612.03928.
    """
    return matched(functools.partial(loss, power=power), student_taps, teacher_taps, scale)


def flow(
    student_pairs: tuple[tuple[str, str], ...],
    teacher_pairs: tuple[tuple[str, str], ...],
    scale: float = 1.0,
) -> Part:
    """scale * the sum over pairs of layers of `losses.maps.flow`, a mean over examples (FSP).

    student_pairs, teacher_pairs: (first, second) taps, as many of one as of the other, whose maps
    have as many channels. Trained with it alone first, then with labels. Yim et al. 2017, CVPR.
    """
    as_many(student_pairs, teacher_pairs)

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        values = [
            maps.flow(*(student.taps[name] for name in ours), *(teacher.taps[n] for n in theirs))
            for ours, theirs in zip(student_pairs, teacher_pairs, strict=True)
        ]
        return weighted_sum(sum(values[1:], values[0]), batch["weights"], scale)

    ours, theirs = (
        tuple(n for pair in side for n in pair) for side in (student_pairs, teacher_pairs)
    )
    return Part(part, student_taps=ours, teacher_taps=theirs)


def channel_similarity(student_tap: str, teacher_tap: str, scale: float = 500.0) -> Part:
    """scale / B * the mean over examples of `losses.maps.channel_similarity` (ICKD).

    The student's map goes through a trained 3x3 convolution to the teacher's channels and the
    batch's normalisation. B counts the examples that have a weight; the released code divides by
    it once more than a mean does, and its weight of 500 belongs to that.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        s, t = student.taps[student_tap].shape[-1], teacher.taps[teacher_tap].shape[-1]
        return {"conv": make_conv(key, 3, s, t), "norm": make_norm(t)}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        here = present(batch)
        x = conv(aux["conv"], student.taps[student_tap], padding=1)
        x = batch_norm(aux["norm"], x, here)
        values = maps.channel_similarity(x, teacher.taps[teacher_tap])
        term = weighted_sum(values, batch["weights"], scale)
        return term._replace(weight=term.weight * here.sum())

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=True)


def affinity(student_tap: str, teacher_tap: str, scale: float = 1.0, *, side: int = 1) -> Part:
    """scale * `losses.maps.affinity` of a trained convolution's map, a mean over examples.

    The convolution is side x side (odd) to the teacher's channels, and keeps the map's size; of two
    maps the larger is average-pooled first. He et al. 2019, CVPR: there the teacher's map is a
    trained translator's (`attached.knowledge_adaptation`); torchdistill's settings have side 3.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"side: got {side}, takes an odd number")

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        s, t = student.taps[student_tap].shape[-1], teacher.taps[teacher_tap].shape[-1]
        return make_conv(key, side, s, t, bias=True)

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x, target = same_places(student.taps[student_tap], teacher.taps[teacher_tap])
        x = conv(aux, x, padding=side // 2)
        return weighted_sum(maps.affinity(x, target), batch["weights"], scale)

    return Part(part, init, (student_tap,), (teacher_tap,))


def review(
    student_taps: tuple[str, ...],
    teacher_taps: tuple[str, ...],
    scale: float = 1.0,
    *,
    width: int = 64,
    sizes: tuple[int, ...] = (4, 2, 1),
) -> Part:
    """scale * the sum over stages of `losses.maps.hierarchical_context`: knowledge review.

    Taps in pairs, from shallow to deep. From the deepest on, a student's map goes through a 1x1
    convolution to `width` channels; what came out of the next deeper one, resized to it, is added,
    both weighed at each place by sigmoids of a 1x1 convolution of the two; that goes on to the next
    shallower stage, and through a 3x3 convolution to the teacher's channels. Convolutions are
    normalised by the batch. Maps of different sizes are resized by their nearest places.
    Chen et al. 2021, arXiv 2104.09044; after released code.
    """
    as_many(student_taps, teacher_taps)
    stages = tuple(zip(student_taps, teacher_taps, strict=True))

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        def stage(key, ours: str, theirs: str, deepest: bool) -> PyTree:
            keys = jax.random.split(key, 3)
            outputs = teacher.taps[theirs].shape[-1]
            weights = {
                "in": make_conv(keys[0], 1, student.taps[ours].shape[-1], width),
                "in_norm": make_norm(width),
                "out": make_conv(keys[1], 3, width, outputs),
                "out_norm": make_norm(outputs),
            }
            return weights if deepest else weights | {"fuse": make_linear(keys[2], 2 * width, 2)}

        return {
            f"stage_{i}": stage(jax.random.fold_in(key, i), *taps, i == len(stages) - 1)
            for i, taps in enumerate(stages)
        }

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        here, before, total = present(batch), None, jnp.zeros_like(batch["weights"], jnp.float32)
        for i, (ours, theirs) in reversed(tuple(enumerate(stages))):
            weights, target = aux[f"stage_{i}"], teacher.taps[theirs]
            x = conv(weights["in"], student.taps[ours])
            x = batch_norm(weights["in_norm"], x, here)
            if before is not None:
                y = _nearest(before, x)
                shares = jax.nn.sigmoid(linear(weights["fuse"], jnp.concatenate([x, y], -1)))
                x = x * shares[..., :1] + y * shares[..., 1:]
            before = x
            out = conv(weights["out"], _nearest(x, target), padding=1)
            out = batch_norm(weights["out_norm"], out, here)
            total += maps.hierarchical_context(out, target, sizes=sizes)
        return weighted_sum(total, batch["weights"], scale)

    return Part(part, init, student_taps, teacher_taps, whole_batch=True)


def _nearest(x: jax.Array, like: jax.Array) -> jax.Array:
    size = (x.shape[0], *like.shape[1:3], x.shape[-1])
    return x if x.shape == size else jax.image.resize(x, size, "nearest")


def matched(
    loss: FeatureLoss,
    student_taps: tuple[str, ...],
    teacher_taps: tuple[str, ...],
    scale: float = 1.0,
) -> Part:
    """scale * the sum over pairs of taps of loss(student's, teacher's features) [B].

    Nothing is trained beside the student: the shapes have to agree where the loss says so. With
    `losses.features.hint` on pooled features it is CSE-L2. With `squared_distance` it is HND at the
    one layer behind a replaced front, and GHND at that and later ones: the student is a copy of the
    teacher but for the front, and `make_train_step(..., trains=...)` names the front alone.
    """
    as_many(student_taps, teacher_taps)

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        stages = zip(student_taps, teacher_taps, strict=True)
        values = [loss(student.taps[s], teacher.taps[t]) for s, t in stages]
        return weighted_sum(sum(values[1:], values[0]), batch["weights"], scale)

    return Part(part, student_taps=student_taps, teacher_taps=teacher_taps)
