"""Discovery of new classes beside known ones, with the known classes' relations kept.

    old = cosine_heads(encoder, "pooled", CosineHeadsConfig(width=64, known=5))
    new = cosine_heads(encoder, "pooled", CosineHeadsConfig(width=64, known=5, novel=5, heads=4))
    objective = class_relations(new, old)

`old` is trained on the known classes first; its weights are frozen["teacher"], and where the new
model begins. `augment.prepare.in_views` makes the views.
"""

import jax
import jax.numpy as jnp

from kd_jax.losses.discovery import class_relation, sinkhorn, swapped_cross_entropy
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import (
    Batch,
    Context,
    Frozen,
    Model,
    Objective,
    Output,
    Params,
    Policy,
    weighted_sum,
)


def class_relations(
    model: Model,
    old: Model,
    alpha: float = 0.1,
    *,
    large: int = 2,
    temperature: float = 0.1,
    softening: float = 4.0,
    weigh: bool = True,
    eps: float = 0.05,
    steps: int = 3,
    policy: Policy = own_weights,
    old_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """Swapped prediction over K + U classes, and alpha * `losses.discovery.class_relation`.

    model, old: with a tap "known" [B, K], the model with "novel" [B, H, U] too, of cosines
        (`models.cosine_heads`).
    batch: "views" [B, W, ...], the first `large` of them large crops; "labelled" [B], 1 or 0;
        targets, read where labelled, below K; weights, 0 for padding.
    Of every large view and head the target is the label among the K classes, or for examples
    without one the assignment by `sinkhorn` (of all of them, without gradient) among the U classes;
    every other view predicts it. The relation term is over examples without labels and the large
    views, each by its learnt weight or, without `weigh`, alike; old runs in evaluation mode, with
    the state frozen["teacher_state"].
    Terms "cluster" and "relation", means over examples (views and heads averaged); metrics
    "head_h", the clustering loss of each head, whose sum over a training tells the best head.
    Carry is the model's own state. All views are in one forward pass and share a batch's
    statistics, where the released code runs one view after the other.
    Gu et al. 2023, arXiv 2307.09158, by released code: H 4, two large and two small views.
    """

    def run(one: Model, weights, views: jax.Array, taps, **given):
        """Taps [B, W, ...] of views [B, W, ...], and the new state."""
        count, per = views.shape[:2]
        inputs = {"inputs": views.reshape(count * per, *views.shape[2:])}
        output = one.apply(weights, inputs, taps=taps, **given)
        folded = {t: x.reshape(count, per, *x.shape[1:]) for t, x in output.taps.items()}
        return folded, output.state

    def loss(params: Params, carry, frozen: Frozen, batch: Batch, ctx: Context) -> Output:
        views, weights = batch["views"], batch["weights"]
        if views.shape[1] < max(large, 2) or large < 1:
            raise ValueError(f"views: got {views.shape[1]}, takes two and {large} large ones")
        labelled = batch["labelled"].astype(bool)
        unlabelled = ~labelled & (weights != 0)
        found, state = run(
            model,
            policy(params, frozen),
            views,
            ("known", "novel"),
            state=carry,
            key=ctx.key,
            train=ctx.train,
        )
        novel = found["novel"].transpose(1, 2, 0, 3)  # [W, H, B, U]
        known = _to_heads(found["known"], novel.shape[1])
        logits = jnp.concatenate([known, novel], -1)

        def assign(z: jax.Array) -> jax.Array:
            return sinkhorn(z, unlabelled, eps=eps, steps=steps)

        assigned = jax.vmap(jax.vmap(assign))(novel[:large])
        own = jax.nn.one_hot(batch["targets"], known.shape[-1]) * labelled[:, None]
        targets = jnp.concatenate([jnp.broadcast_to(own, known[:large].shape), assigned], -1)
        of_heads = swapped_cross_entropy(logits, targets, temperature=temperature)

        kept, _ = run(
            old,
            old_policy(params, frozen),
            views[:, :large],
            ("known",),
            state=frozen.get("teacher_state", {}),
        )
        before = jax.lax.stop_gradient(_to_heads(kept["known"], novel.shape[1]))
        without_label = jnp.where(unlabelled, weights, 0.0).astype(jnp.float32)
        relation = class_relation(
            before,
            logits[:large],
            without_label,
            temperature=temperature,
            softening=softening,
            weigh=weigh,
        )
        return Output(
            {
                "cluster": weighted_sum(of_heads.mean(0), weights),
                "relation": weighted_sum(relation.mean((0, 1)), without_label, alpha),
            },
            {f"head_{h}": weighted_sum(values, weights) for h, values in enumerate(of_heads)},
            {},
            state,
        )

    def init(key, params, frozen, batch):
        return {}, model.state()

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        return output.state

    return Objective(init, loss, update, whole_batch=True)


def _to_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, W, K] -> [W, H, B, K]."""
    x = x.transpose(1, 0, 2)[:, None]
    return jnp.broadcast_to(x, (x.shape[0], heads, *x.shape[2:]))
