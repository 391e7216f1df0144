"""Unlearning on labels drawn at random: for classifiers, and for answers to choose from.

Both wrap an objective and redraw what it trains on at every step. A draw is a function of seed,
step and the row's batch["index"], so that it does not depend on how a batch is cut or ordered. The
right label is drawn like any other, as in released code (Fan et al. 2023, SalUn, arXiv 2310.12508);
some papers leave it out. Minimal, with cross-entropy, at the uniform distribution: log C.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.types import Batch, Context, Objective, Term


def random_labels(objective: Objective, classes: int, *, seed: int) -> Objective:
    """The objective with batch["targets"] drawn uniformly from all `classes`, int [B].

    batch: "index" int [B] and what the objective reads; targets that are there are not read.
    """
    if classes < 2:
        raise ValueError(f"classes: got {classes}, takes at least 2")

    def change(batch: Batch, keys: jax.Array) -> Batch:
        return {**batch, "targets": _draw(keys, classes)}

    return _redrawn(objective, change, seed)


def random_options(objective: Objective, *, seed: int) -> Objective:
    """The objective on one of O answer options a row, drawn uniformly: [B, O, ...] -> [B, ...].

    batch: "index" int [B]; every array of two or more axes has the options as its second, the
    others are passed on. For language models: text batches [B, O, T], a question with each of its
    options (Zhang et al. 2024, arXiv 2409.02228, with two).
    """

    def change(batch: Batch, keys: jax.Array) -> Batch:
        counts = {x.shape[1] for x in batch.values() if x.ndim > 1}
        if len(counts) != 1:
            raise ValueError(f"batch: got {sorted(counts)} options, takes arrays of one number")
        drawn = _draw(keys, counts.pop())

        def pick(x: jax.Array) -> jax.Array:
            if x.ndim < 2:
                return x
            return jnp.take_along_axis(x, drawn.reshape(-1, *(1,) * (x.ndim - 1)), 1)[:, 0]

        return {name: pick(x) for name, x in batch.items()}

    return _redrawn(objective, change, seed)


def _draw(keys: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)


def _redrawn(
    objective: Objective, change: Callable[[Batch, jax.Array], Batch], seed: int
) -> Objective:
    def drawn(batch: Batch, step: jax.Array) -> Batch:
        # Not ctx.key, which differs between microbatches; not carry, on which weights may not hang.
        key = jax.random.fold_in(jax.random.key(seed), step)
        return change(batch, jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"]))

    def init(key, params, frozen, batch):
        return objective.init(key, params, frozen, drawn(batch, jnp.int32(0)))

    def loss(params, carry, frozen, batch, ctx: Context):
        return objective.loss(params, carry, frozen, drawn(batch, ctx.step), ctx)

    found = objective.stats

    def stats(params, carry, frozen, batch, ctx: Context) -> dict[str, Term]:
        return found(params, carry, frozen, drawn(batch, ctx.step), ctx) if found else {}

    return objective._replace(init=init, loss=loss, stats=stats if found else None)
