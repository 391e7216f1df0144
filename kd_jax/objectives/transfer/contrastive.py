"""CRD: embeddings of student and teacher drawn together, against banks of all training examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses.contrastive import log_scores, noise_contrastive, updated_bank
from kd_jax.losses.features import direction
from kd_jax.objectives.parts import Remembering
from kd_jax.objectives.transfer.modules import flat, linear, make_linear, size_of
from kd_jax.objectives.transfer.weighing import present
from kd_jax.types import Batch, Context, ModelOutput, weighted_sum


def contrastive(
    student_tap: str,
    teacher_tap: str,
    scale: float = 0.8,
    *,
    examples: int,
    negatives: Callable[[jax.Array, jax.Array], jax.Array],
    width: int = 128,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> Remembering:
    """scale * (h(student against the teacher's bank) + h(teacher against the student's)).

    h: `losses.contrastive.noise_contrastive`, a mean over examples. Both linear embeddings are
    trained, the teacher's too; its features are not. examples: n of the training set, which
    batch["index"] counts, with -1 for padding. negatives: (key, label) -> int [m], of one example,
    such as `losses.contrastive.other_classes`.
    Memory: two banks [n, width], at first uniform in +-(3 / width)^1/2 and written after each step,
    and the constants Z, the first batch's mean score times n. That first mean is over the batch:
    microbatches are refused.
    Tian et al. 2020, arXiv 1910.10699; after released code (weight 0.8, m 16384).
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch):
        keys = jax.random.split(key, 4)
        aux = {
            "student": make_linear(keys[0], size_of(student.taps[student_tap]), width),
            "teacher": make_linear(keys[1], size_of(teacher.taps[teacher_tap]), width),
        }
        edge = (3 / width) ** 0.5

        def side(key: jax.Array) -> dict[str, jax.Array]:
            bank = jax.random.uniform(key, (examples, width), minval=-edge, maxval=edge)
            # log Z is infinite until the first batch.
            return {"bank": bank, "log_z": jnp.full((), jnp.inf)}

        return aux, {"student": side(keys[2]), "teacher": side(keys[3])}

    def part(aux, memory, student: ModelOutput, teacher: ModelOutput, batch, ctx: Context):
        here = present(batch)
        index = jnp.where(here, batch["index"], 0)
        # Keys by index, not by row: an example draws the same however the batch is padded.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(ctx.key, index)
        drawn = jax.vmap(negatives)(keys, batch["targets"])
        columns = jnp.concatenate([index[:, None], drawn], axis=1)
        taps = {"student": student.taps[student_tap], "teacher": teacher.taps[teacher_tap]}
        v = {name: direction(linear(aux[name], flat(x))) for name, x in taps.items()}
        total, rows = jnp.zeros(len(index)), {"index": jnp.where(here, batch["index"], -1)}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scores = log_scores(v[side], memory[other]["bank"], columns, temperature=temperature)
            log_z = jnp.where(
                jnp.isinf(memory[side]["log_z"]),
                jax.lax.stop_gradient(_log_mean(scores, here)) + jnp.log(examples),
                memory[side]["log_z"],
            )
            total += noise_contrastive(scores - log_z, examples=examples)
            rows |= {side: v[side], f"{side}_log_z": jnp.broadcast_to(log_z, index.shape)}
        return weighted_sum(total, batch["weights"], scale), rows

    def update(memory, rows):
        index = rows["index"]
        return {
            side: {
                "bank": updated_bank(
                    memory[side]["bank"], index, rows[side], index >= 0, momentum=momentum
                ),
                "log_z": rows[f"{side}_log_z"][0],
            }
            for side in memory
        }

    return Remembering(part, init, update, (student_tap,), (teacher_tap,), whole_batch=True)


def _log_mean(scores: jax.Array, here: jax.Array) -> jax.Array:
    """log of the mean of exp(scores) over the rows that are there."""
    kept = jnp.where(here[:, None], scores, -jnp.inf)
    count = jnp.maximum(here.sum(), 1) * scores.shape[1]
    return jax.nn.logsumexp(kept) - jnp.log(count)
