"""SLA with self-distillation: joint labels of class and rotation teach the single-view head."""

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import accuracy, cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.joint_labels import aggregated, joint_labels, rotations
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.transfer.modules import linear, make_linear
from kd_jax.types import Batch, Context, Model, Objective, Output, Policy, weighted_sum

VIEWS = 4


def rotation_labels(
    model: Model,
    tap: str,
    *,
    joint: float = 1.0,
    temperature: float = 1.0,
    policy: Policy = own_weights,
) -> Objective:
    """joint * CE of (class, rotation) + CE(z, y) + T^2 KL(softmax(z_A / T) || softmax(z / T)).

    z: the model's own logits of the image as it is. The joint logits are of a trained linear head
    on its tap [B, D], of all four rotations of batch["inputs"] [B, S, S, C]; z_A is their
    `losses.joint_labels.aggregated`, without gradient. That head is an aux parameter: what is
    exported sees one view. Terms "joint" (a mean over views), "ce" and "kd"; metrics "accuracy" and
    "aggregated_accuracy". joint: 4 for large data sets. Carry is the model's own state; four views
    of an image are in a batch's statistics.
    Lee et al. 2020 (SLA+SD), arXiv 1910.05872, by released code; the paper has a weight on the CE.
    """

    def run(params, state, frozen, batch: Batch, key, train):
        turned = {"inputs": rotations(batch["inputs"])}
        return model.apply(
            policy(params, frozen), turned, state=state, key=key, train=train, taps=(tap,)
        )

    def init(key, params, frozen, batch):
        own = {"model": params, "aux": {}}
        output = jax.eval_shape(
            lambda p, f, b: run(p, model.state(), f, b, key, False), own, frozen, batch
        )
        classes = jax.eval_shape(lambda o: o.head.logits(), output).shape[-1]
        head = make_linear(key, output.taps[tap].shape[-1], classes * VIEWS)
        return {"joint": head}, model.state()

    def loss(params, carry, frozen, batch: Batch, ctx: Context) -> Output:
        output = run(params, carry, frozen, batch, ctx.key, ctx.train)
        of_views = linear(params["aux"]["joint"], output.taps[tap])
        single, weights = output.head.logits()[::VIEWS], batch["weights"]
        labels = batch["targets"]
        together = jax.lax.stop_gradient(aggregated(of_views, VIEWS))
        kl = forward_kl(single, together, temperature=temperature)
        both = cross_entropy(of_views, joint_labels(labels, VIEWS))
        return Output(
            {
                "joint": weighted_sum(both, jnp.repeat(weights, VIEWS), joint),
                "ce": weighted_sum(cross_entropy(single, labels), weights),
                "kd": weighted_sum(kl, weights, temperature**2),
            },
            {
                "accuracy": weighted_sum(accuracy(single, labels), weights),
                "aggregated_accuracy": weighted_sum(accuracy(together, labels), weights),
            },
            {},
            output.state,
        )

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        return output.state

    return Objective(init, loss, update)
