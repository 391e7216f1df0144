"""Swing distillation: the teacher says less where what comes next may be private."""

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.swing import swing_kl, swing_targets
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import Context, Model, Objective, Output, Policy, stateless


def swing(
    student: Model,
    teacher: Model,
    *,
    high: float,
    sigma: float,
    low: float = 1.0,
    hard: float = 0.0,
    seed: int = 0,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """KL(noisy, tempered teacher || student) + hard (1 - private) NLL, a mean over tokens.

    batch: text with "private" f32 [B, T] besides, in [0, 1]: how likely each target is private.
    low, high, sigma: of `losses.swing`; labels of private targets are not learnt either.
    seed: of the noise, which is fresh each step and belongs to a row's index and position, so that
        it is the same on any mesh and in any microbatches.
    Source: arXiv 2212.08349, INFERRED (`losses.swing`).
    """

    def row(logits, others, rows, fixed) -> jax.Array:
        targets, private, keys = rows
        noisy = jax.vmap(jax.vmap(_targets))(others[0], private, keys)
        value = swing_kl(logits, noisy, temperature=low)
        return value - hard * (1 - private) * label_log_probs(logits, targets) if hard else value

    def _targets(logits, private, key) -> jax.Array:
        key = jax.random.wrap_key_data(key)
        return swing_targets(logits, private, key, low=low, high=high, sigma=sigma)

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        ours = student.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        theirs = teacher.apply(teacher_policy(params, frozen), batch)
        keys = _keys(jax.random.fold_in(jax.random.key(seed), ctx.step), batch)
        rows = batch["targets"], batch["private"], keys
        term = weighted_sum_over_vocabulary(
            row, ours.head, batch["weights"], rows, others=(theirs.head,)
        )
        return Output({"swing": term})

    return stateless(loss)


def _keys(key: jax.Array, batch) -> jax.Array:
    """The data of a key for every position, uint32 [B, T, 2]."""
    length = batch["inputs"].shape[1]
    of_rows = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    places = jnp.arange(length)
    of_places = jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, places))(of_rows)
    return jax.random.key_data(of_places)
