"""Teacher and student: losses on one forward pass of each.

    distil(student, teacher, {"ce": labels(0.1), "kd": soft_labels(0.9, temperature=4.0)})

reads as 0.1 * CE + 0.9 * T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.divergences import forward_kl, reverse_kl
from kd_jax.losses.features import hint as hint_loss
from kd_jax.losses.relations import relation_kl
from kd_jax.losses.streaming import Row
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.vocabulary import common
from kd_jax.objectives.combinators import frozen_weights, own_weights, prefixed, stripped
from kd_jax.objectives.parts import Part, Remembering, remembering
from kd_jax.objectives.terms import label_cross_entropy, next_token_nll
from kd_jax.types import (
    Batch,
    Context,
    Head,
    Model,
    ModelOutput,
    Objective,
    Output,
    Policy,
    Term,
    weighted_sum,
)

PyTree = Any
TokenLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def distil(
    student: Model,
    teacher: Model,
    parts: Mapping[str, Part | Remembering],
    *,
    metrics: Mapping[str, Callable[[ModelOutput, Batch], Term]] | None = None,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """The sum of parts on one forward pass of each model; no gradient reaches the teacher.

    The teacher runs in evaluation mode. Its weights are frozen["teacher"] by default, and its own
    state (BatchNorm statistics) frozen["teacher_state"] where there is one.
    metrics: of the student's output, as in `supervise`.
    carry is the student's own state; with a part that remembers it is {"model": that state,
    "memory": {name: memory}}.
    """
    remembers = any(isinstance(part, Remembering) for part in parts.values())
    full = {name: remembering(part) for name, part in parts.items()}

    def taps_of(side: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t for p in full.values() for t in getattr(p, side)))

    def run_teacher(params, frozen, batch) -> ModelOutput:
        weights, state = teacher_policy(params, frozen), frozen.get("teacher_state", {})
        output = teacher.apply(weights, batch, state=state, taps=taps_of("teacher_taps"))
        return jax.lax.stop_gradient(output)

    def run_student(params, state, frozen, batch, key, train) -> ModelOutput:
        weights, taps = policy(params, frozen), taps_of("student_taps")
        return student.apply(weights, batch, state=state, key=key, train=train, taps=taps)

    def init(key, params, frozen, batch):
        def outputs(params, frozen, batch):
            own = {"model": params, "aux": {}}
            return (
                run_student(own, student.state(), frozen, batch, key, False),
                run_teacher(own, frozen, batch),
            )

        of_student, of_teacher = jax.eval_shape(outputs, params, frozen, batch)
        made = {
            name: part.init(jax.random.fold_in(key, i), of_student, of_teacher, batch)
            for i, (name, part) in enumerate(full.items())
        }
        aux, memory = ({n: pair[i] for n, pair in made.items()} for i in (0, 1))
        state = student.state()
        return aux, {"model": state, "memory": memory} if remembers else state

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        state = carry["model"] if remembers else carry
        of_student = run_student(params, state, frozen, batch, ctx.key, ctx.train)
        of_teacher = run_teacher(params, frozen, batch)
        memory = carry["memory"] if remembers else dict.fromkeys(full, {})
        found = {
            n: part.loss(
                params["aux"][n],
                memory[n],
                of_student,
                of_teacher,
                batch,
                ctx._replace(key=jax.random.fold_in(ctx.key, i)),
            )
            for i, (n, part) in enumerate(full.items())
        }
        return Output(
            {n: term for n, (term, _) in found.items()},
            {n: metric(of_student, batch) for n, metric in (metrics or {}).items()},
            jax.lax.stop_gradient(prefixed({n: rows for n, (_, rows) in found.items()})),
            of_student.state,
        )

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        if not remembers:
            return output.state
        memory = {
            n: part.update(carry["memory"][n], stripped(output.rows, n)) for n, part in full.items()
        }
        return {"model": output.state, "memory": memory}

    whole_batch = any(part.whole_batch for part in full.values())
    return Objective(init, loss, update, whole_batch=whole_batch)


def student_state(carry: PyTree) -> PyTree:
    """The student's own state (BatchNorm statistics) in the carry of `distil`, to measure it by."""
    return carry["model"] if set(carry) == {"model", "memory"} else carry


def labels(scale: float = 1.0) -> Part:
    """scale * cross-entropy with batch["targets"] [B], a mean over examples."""
    return Part(lambda aux, s, t, batch: label_cross_entropy(s, batch)._replace(scale=scale))


def tokens(scale: float = 1.0) -> Part:
    """scale * next-token negative log-likelihood, a mean over tokens."""
    return Part(lambda aux, s, t, batch: next_token_nll(s, batch)._replace(scale=scale))


def soft_labels(scale: float = 1.0, *, temperature: float = 1.0) -> Part:
    """scale * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), a mean over examples.

    T^2 keeps the size of the gradient independent of T (Hinton et al. 2015, section 2.1).
    """

    def loss(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        z, target = student.head.logits(), teacher.head.logits()
        kl = forward_kl(z, target, temperature=temperature)
        return weighted_sum(kl, batch["weights"], scale * temperature**2)

    return Part(loss)


def reverse_soft_labels(scale: float = 1.0, *, temperature: float = 1.0) -> Part:
    """scale * T^2 * KL(softmax(z_s / T) || softmax(z_t / T)), a mean over examples."""

    def loss(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        z, target = student.head.logits(), teacher.head.logits()
        kl = reverse_kl(z, target, temperature=temperature)
        return weighted_sum(kl, batch["weights"], scale * temperature**2)

    return Part(loss)


def soft_tokens(
    scale: float = 1.0, *, temperature: float = 1.0, vocabulary: int | None = None
) -> Part:
    """scale * T^2 * KL(teacher || student) at temperature T, a mean over tokens; streamed.

    vocabulary: as in `token_divergence`.
    """
    loss = functools.partial(forward_kl, temperature=temperature)
    return token_divergence(
        lambda s, t, y: loss(s, t), scale * temperature**2, vocabulary=vocabulary
    )


def token_divergence(
    loss: TokenLoss, scale: float = 1.0, *, hard: float = 0.0, vocabulary: int | None = None
) -> Part:
    """scale * loss(student, teacher, targets) + hard * NLL of the targets, a mean over tokens.

    loss: of `losses.divergences` and its neighbours, (logits [..., V], teacher's logits [..., V],
        targets int [...]) -> [...]; such as `lambda s, t, y: jensen_shannon(s, t, beta=0.5)`.
    Streamed over the vocabulary, with both losses on the same logits: as two parts, the next-token
    loss beside it would make them once more.
    vocabulary: how many tokens the two share, where their heads are padded to different sizes: all
        is over the first so many, and the others get no gradient. ValueError, when the training is
        initialised, where heads of different sizes are given without it.
    """
    row = soft_and_hard(lambda s, others, y: loss(s, others[0], y), scale, hard)

    def heads(student: ModelOutput, teacher: ModelOutput) -> list[Head]:
        return common({"student": student.head, "teacher": teacher.head}, vocabulary)

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        jax.eval_shape(heads, student, teacher)
        return {}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        ours, theirs = heads(student, teacher)
        return weighted_sum_over_vocabulary(
            row, ours, batch["weights"], batch["targets"], others=(theirs,)
        )

    return Part(part, init)


def soft_and_hard(
    soft: Callable[[jax.Array, tuple[jax.Array, ...], jax.Array], jax.Array],
    scale: float,
    hard: float,
) -> Row:
    """The row of scale * soft(logits, others' logits, targets) + hard * NLL of the targets."""

    def row(logits, others, targets, fixed) -> jax.Array:
        value = scale * soft(logits, others, targets)
        return value - hard * label_log_probs(logits, targets) if hard else value

    return row


def hint(student_tap: str, teacher_tap: str, scale: float = 1.0) -> Part:
    """scale * mean((f_s @ W + b - f_t)^2), a weighted mean, with a trained regressor W, b.

    Over examples, of which each is the mean over its places; over tokens, where the batch weighs
    those: hidden states [B, T, D] of language models ("block_3").
    FitNets (Romero et al. 2015), Eq. 3 with a linear regressor over the last axis and a mean
    instead of half the sum. The regressor is an aux parameter: it is dropped with the rest.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        d_in = student.taps[student_tap].shape[-1]
        d_out = teacher.taps[teacher_tap].shape[-1]
        kernel = jax.random.normal(key, (d_in, d_out)) / jnp.sqrt(d_in)
        return {"kernel": kernel, "bias": jnp.zeros(d_out)}

    def loss(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        feature = student.taps[student_tap]
        guess = feature @ aux["kernel"].astype(feature.dtype)
        bias = aux["bias"].reshape((1,) * (guess.ndim - 1) + (-1,))
        weights, target = batch["weights"], teacher.taps[teacher_tap]
        each = (-1, *feature.shape[weights.ndim : -1], target.shape[-1])
        values = hint_loss((guess + bias).reshape(each), target.reshape(each))
        return weighted_sum(values.reshape(weights.shape), weights, scale)

    return Part(loss, init, (student_tap,), (teacher_tap,))


def relations(student_layer: int, teacher_layer: int, scale: float = 1.0, *, heads: int) -> Part:
    """scale * the mean of three `losses.relations.relation_kl`, a mean over tokens: attention.

    Of decoders: queries with queries, keys with keys, values with values of a layer of each.
    MiniLMv2 (Wang et al. 2020, arXiv 2012.15828) has its weights alike and takes the student's last
    layer and one of the teacher's upper ones.
    """
    kinds = ("query", "key", "value")
    ours, theirs = (tuple(f"{k}_{n}" for k in kinds) for n in (student_layer, teacher_layer))

    def loss(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        compare = functools.partial(relation_kl, heads=heads, segments=batch.get("segments"))
        values = [
            compare(student.taps[one], teacher.taps[two])
            for one, two in zip(ours, theirs, strict=True)
        ]
        return weighted_sum(jnp.stack(values).mean(0), batch["weights"], scale)

    return Part(loss, student_taps=ours, teacher_taps=theirs)
