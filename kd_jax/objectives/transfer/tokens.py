"""TRG: tokens of a batch as nodes of a graph, of which the student copies three sides."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses import token_graph as graph
from kd_jax.objectives.parts import Remembering
from kd_jax.objectives.transfer.modules import linear, make_linear
from kd_jax.objectives.transfer.weighing import present, same_places, whole
from kd_jax.types import Context, ModelOutput, weighted_sum


def cooling(start: float, end: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """From start to end along half a cosine over `steps`, and end after."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, takes at least 1")

    def at(step: jax.Array) -> jax.Array:
        share = jnp.minimum(step / steps, 1.0)
        return end + (start - end) * (1 + jnp.cos(math.pi * share)) / 2

    return at


def token_graph(
    student_tap: str,
    teacher_tap: str,
    scale: float = 1.0,
    *,
    temperature: Callable[[jax.Array], jax.Array],
    tokens: int = 256,
    neighbours: int = 8,
    sigma: float | None = None,
    width: int = 64,
    context: float = 1.0,
    local: float = 1.0,
    identity: float = 1.0,
) -> Remembering:
    """scale * (context * mean_b + local * mean_i + identity * mean_i) of `losses.token_graph`.

    Tokens are the places of maps [B, H, W, C], the larger average-pooled, or rows of [B, N, D].
    local and identity are over `tokens` drawn at random from the whole batch, the same of both
    networks; identity compares trained linear maps of both to `width`. temperature: of the step,
    such as `cooling(1.0, 0.1, steps)`. sigma: by default the mean squared distance of the teacher's
    drawn tokens. Means where the summary has sums.
    UNVERIFIED throughout (see `losses.token_graph`), the numbers here are proposals. The logit loss
    stands beside it.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch):
        keys = jax.random.split(key)
        return {
            "student": make_linear(keys[0], student.taps[student_tap].shape[-1], width),
            "teacher": make_linear(keys[1], teacher.taps[teacher_tap].shape[-1], width),
        }, {}

    def part(aux, memory, student: ModelOutput, teacher: ModelOutput, batch, ctx: Context):
        here, weights = present(batch), batch["weights"]
        s, t = same_places(student.taps[student_tap], teacher.taps[teacher_tap])
        s, t = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (s, t))
        inner = weighted_sum(graph.context(s, t), weights).value

        # By index, not by row: a token's draw is the same however the batch is padded.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(ctx.key, jnp.where(here, batch["index"], 0))
        draws = jax.vmap(lambda k: jax.random.uniform(k, s.shape[1:2]))(keys)
        draws = jnp.where(here[:, None], draws, 2.0).reshape(-1)
        chosen = jnp.argsort(draws)[: min(tokens, len(draws))]
        s, t = (x.reshape(-1, x.shape[-1])[chosen] for x in (s, t))
        image = chosen // (len(draws) // len(weights))
        there, weighed = here[image], weights[image]
        spread = _mean_square(t, there) if sigma is None else sigma
        near = graph.local(s, t, there, neighbours=neighbours, sigma=spread)
        own = graph.identity(
            linear(aux["student"], s),
            linear(aux["teacher"], t),
            there,
            temperature=temperature(ctx.step),
        )
        of_tokens = weighted_sum(local * near + identity * own, weighed).value
        return whole(context * inner + of_tokens, batch, scale), {}

    return Remembering(
        part, init, student_taps=(student_tap,), teacher_taps=(teacher_tap,), whole_batch=True
    )


def _mean_square(x: jax.Array, there: jax.Array) -> jax.Array:
    """The mean squared distance of two different rows: 2 n / (n - 1) times the mean square norm."""
    count = jnp.maximum(there.sum(), 2)
    kept = jnp.where(there[:, None], x.astype(jnp.float32), 0.0)
    centred = jnp.where(there[:, None], kept - kept.sum(0, keepdims=True) / count, 0.0)
    return jnp.maximum(2 * jnp.square(centred).sum() / (count - 1), 1e-12)
