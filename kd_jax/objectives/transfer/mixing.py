"""Mixup of a batch, for students and teachers that see the same mixed images.

mixed(distil(student, teacher, {"ce": mixed_labels(0.1), "kd": standardised_labels(0.9,
    temperature=1.0)}), classes=100, unmixed=0.9)

Choi et al. 2023, arXiv 2211.03946, by released code.
"""

import jax
import jax.numpy as jnp

from kd_jax.losses.logits import soft_cross_entropy, standardised
from kd_jax.objectives.augment.prepare import floating
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.weighing import present
from kd_jax.types import Batch, Context, ModelOutput, Objective, Term, weighted_sum


def partial_mixup(
    key: jax.Array, batch: Batch, classes: int, *, alpha: float = 1.0, unmixed: float = 0.0
) -> Batch:
    """batch with inputs l x_i + (1 - l) x_j, and "soft_targets" [B, classes] mixed alike.

    i and j are two independent permutations of the examples that have a weight, l ~ Beta(alpha,
    alpha) for each row; in a share `unmixed` of the rows, drawn without replacement, l is 1; 0 is
    full mixup. The released code draws those with replacement, which leaves 1 - (1 - 1 / B)^(B
    unmixed) of all rows unmixed: 59% for 0.9. Rows of weight 0 stay as they are. Weights stay with
    their places. inputs: u8 (scaled by 1/255) or floating, f32 afterwards.
    """
    if not 0 <= unmixed <= 1:
        raise ValueError(f"unmixed: got {unmixed}, takes numbers in [0, 1]")
    if not alpha > 0:
        raise ValueError(f"alpha: got {alpha}, takes a number above 0")
    here = present(batch)
    index = jnp.where(here, batch["index"], 0)
    # By index: an example's draws do not depend on padding.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    draws = jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys)
    share = jax.vmap(lambda k: _share(jax.random.fold_in(k, 1), alpha))(keys)
    order = jnp.argsort(jnp.where(here[:, None], draws, 2.0), axis=0)
    place = jnp.maximum(jnp.cumsum(here) - 1, 0)
    i, j = (jnp.where(here, order[place, k], jnp.arange(len(here))) for k in (0, 1))
    kept = jnp.argsort(order[:, 2]) < jnp.round(unmixed * here.sum())
    share = jnp.where(kept | ~here, 1.0, share)

    def mix(x: jax.Array) -> jax.Array:
        lam = share.reshape((-1,) + (1,) * (x.ndim - 1))
        return lam * x[i] + (1 - lam) * x[j]

    onehot = jax.nn.one_hot(batch["targets"], classes)
    return dict(batch) | {"inputs": mix(floating(batch["inputs"])), "soft_targets": mix(onehot)}


def _share(key: jax.Array, alpha: float) -> jax.Array:
    # Beta(1, 1) is uniform; drawn as such it compiles in no time, others in seconds.
    return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def mixed(
    objective: Objective, *, classes: int, alpha: float = 1.0, unmixed: float = 0.0
) -> Objective:
    """The objective on `partial_mixup` of its batch, drawn anew at each step; of the whole batch.

    `targets` are left in their places, where they belong to other images: losses and metrics read
    "soft_targets". Not for an objective with stats.
    """
    if objective.stats is not None:
        raise ValueError("objective: got one with stats, takes one without")

    def drawn(key: jax.Array, batch: Batch) -> Batch:
        return partial_mixup(
            jax.random.fold_in(key, 0), batch, classes, alpha=alpha, unmixed=unmixed
        )

    def init(key, params, frozen, batch):
        return objective.init(key, params, frozen, drawn(key, batch))

    def loss(params, carry, frozen, batch, ctx: Context):
        return objective.loss(params, carry, frozen, drawn(ctx.key, batch), ctx)

    return objective._replace(init=init, loss=loss, whole_batch=True)


def mixed_labels(scale: float = 1.0, *, standard: bool = True) -> Part:
    """scale * cross-entropy with batch["soft_targets"] [B, C], a mean over examples.

    standard: of the logits divided by their own unbiased standard deviation, as the paper has it.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        z = student.head.logits()
        values = soft_cross_entropy(standardised(z) if standard else z, batch["soft_targets"])
        return weighted_sum(values, batch["weights"], scale)

    return Part(part)
