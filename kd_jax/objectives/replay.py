"""DistiLLM's adaptive off-policy training: data, fresh samples of the student, or old ones.

objective = adaptive_off_policy(distil(student, teacher, parts), capacity=1000, every=100)
Training(make_train_step(objective, ...), ..., prepare=off_policy(write, steps=steps))

How often the student's own texts are used is a threshold that rises each time the loss on
frozen["validation"] has grown. Texts are kept in a ring in the objective's carry, so that most
batches of own texts cost no sampling. Source: Ko et al. 2024, arXiv 2402.03898, section 3.2
(UNVERIFIED), after released code.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.on_policy import Prepare, Write, draw_keys
from kd_jax.types import Batch, Context, Frozen, Objective, Output, Policy, TrainState

DATA, SAMPLE, REPLAY = 0, 1, 2
_KEPT = ("inputs", "targets", "weights")
_FRESH = "fresh"  # in a batch: f32 [B], 1 where the student has just written the row


class Replay(NamedTuple):
    """rows: {"inputs", "targets", "weights"} [C, T], of which `filled` are texts; next: the place
    of the next one. threshold: how often own texts are used. loss: the validation loss that the
    next one is compared with, inf before the first."""

    rows: dict[str, jax.Array]
    filled: jax.Array
    next: jax.Array
    threshold: jax.Array
    loss: jax.Array


def threshold(
    before: ArrayLike, lowest: ArrayLike, loss: ArrayLike, *, eps: float = 0.1, rise: float = 0.1
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(threshold, validation loss to compare with) after a validation.

    The threshold rises by `rise`, up to 1, where loss >= lowest + eps, and the loss takes lowest's
    place then; else both stay. The first loss (lowest = inf) is only taken.
    """
    first = jnp.isinf(lowest)
    grown = ~first & (jnp.asarray(loss) >= lowest + eps)
    higher = jnp.minimum(jnp.asarray(before) + rise, 1.0)
    return jnp.where(grown, higher, before), jnp.where(first | grown, loss, lowest)


def source(
    u: ArrayLike, threshold: ArrayLike, fresh: ArrayLike, filled: ArrayLike, capacity: int
) -> Int[Array, ""]:
    """Where a batch comes from: DATA, SAMPLE or REPLAY; u is uniform in [0, 1).

    fresh: the share of batches that are sampled even when the ring is full. SAMPLE where
    u < fresh, or u < threshold while the ring has room; REPLAY where u < threshold; else DATA.
    """
    own = jnp.asarray(u) < threshold
    sample = (u < jnp.asarray(fresh)) | (own & (jnp.asarray(filled) < capacity))
    return jnp.where(sample, SAMPLE, jnp.where(own, REPLAY, DATA)).astype(jnp.int32)


def decreasing(progress: ArrayLike) -> jax.Array:
    """1 - progress: fewer and fewer fresh samples, the paper's choice."""
    return 1.0 - jnp.asarray(progress)


def adaptive_off_policy(
    objective: Objective,
    *,
    every: int,
    capacity: int = 1000,
    eps: float = 0.1,
    start: float = 0.0,
) -> Objective:
    """The objective with a ring of the student's texts and the threshold in its carry.

    Every `every` steps, from the first, the objective's loss on frozen["validation"], a text batch,
    moves the threshold. capacity: rows of the ring, at least a batch's. start: the first threshold.
    Metrics and terms are the objective's.
    """

    def init(key, params, frozen, batch):
        size = batch["inputs"].shape[0]
        if capacity < size:
            raise ValueError(f"capacity: got {capacity}, takes at least a batch's rows, {size}")
        aux, carry = objective.init(key, params, frozen, batch)
        ring = {n: jnp.zeros((capacity, *batch[n].shape[1:]), batch[n].dtype) for n in _KEPT}
        none = jnp.zeros((), jnp.int32)
        return aux, (carry, Replay(ring, none, none, jnp.float32(start), jnp.float32(jnp.inf)))

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = objective.loss(params, carry[0], frozen, batch, ctx)
        if _FRESH not in batch:  # an evaluation
            return output
        rows = {f"replay/{name}": batch[name] for name in (*_KEPT, _FRESH)}
        return output._replace(rows={**output.rows, **rows})

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        inner, replay = carry
        inner = objective.update(inner, new_params, frozen, output, ctx)
        replay = _pushed(replay, {n: output.rows[f"replay/{n}"] for n in (*_KEPT, _FRESH)})

        def validated() -> tuple[jax.Array, jax.Array]:
            at = ctx._replace(train=False)
            found = objective.loss(new_params, inner, frozen, frozen["validation"], at).loss
            return threshold(replay.threshold, replay.loss, found, eps=eps)

        due = ctx.step % every == 0
        height, last = jax.lax.cond(due, validated, lambda: (replay.threshold, replay.loss))
        return inner, replay._replace(threshold=height, loss=last)

    stats = objective.stats
    return objective._replace(
        init=init,
        loss=loss,
        update=update,
        stats=None
        if stats is None
        else lambda params, carry, frozen, batch, ctx: stats(params, carry[0], frozen, batch, ctx),
    )


def off_policy(
    write: Write,
    *,
    steps: int,
    fresh: Callable[[ArrayLike], jax.Array] = decreasing,
    policy: Policy = own_weights,
) -> Prepare:
    """The `prepare` of a training of `adaptive_off_policy`: a batch of one of three sources.

    steps: of the whole training. fresh(progress) times the threshold is the share of batches that
    the student writes anew when the ring is full.
    """

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        decide, draw = draw_keys(state)
        replay: Replay = state.carry[1]
        capacity = len(replay.rows["inputs"])
        share = replay.threshold * fresh(state.step / steps)
        u = jax.random.uniform(decide)
        chosen = source(u, replay.threshold, share, replay.filled, capacity)
        rows = batch["inputs"].shape[0]

        def marked(batch: Batch, value: float) -> Batch:
            return {**batch, _FRESH: jnp.full((rows,), value, jnp.float32)}

        def replayed() -> Batch:
            picked = jax.random.randint(draw, (rows,), 0, jnp.maximum(replay.filled, 1))
            return marked({**batch, **{n: x[picked] for n, x in replay.rows.items()}}, 0.0)

        return jax.lax.switch(
            chosen,
            (
                lambda: marked(batch, 0.0),
                lambda: marked(write(policy(state.params, frozen), batch, draw), 1.0),
                replayed,
            ),
        )

    return prepare


def _pushed(replay: Replay, rows: dict[str, jax.Array]) -> Replay:
    """With the rows in the ring, over its oldest, where the batch is fresh."""
    capacity, count = len(replay.rows["inputs"]), len(rows[_FRESH])
    fresh = rows[_FRESH][0] > 0
    # Another place than any for a batch that is not kept: dropped.
    places = jnp.where(fresh, (replay.next + jnp.arange(count)) % capacity, capacity)
    kept = {n: x.at[places].set(rows[n], mode="drop") for n, x in replay.rows.items()}
    new = jnp.where(fresh, count, 0)
    return replay._replace(
        rows=kept,
        filled=jnp.minimum(replay.filled + new, capacity),
        next=(replay.next + new) % capacity,
    )
