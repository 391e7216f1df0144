"""TGeo-KD: a network weighs label and teacher for each example, by what helps on other data.

    objective = trilateral(student, teacher)
    step = make_train_step(objective, optax.adam(1e-3),
        gradient=bilevel(inner="inner", outer="outer", learning_rate=1e-3))

Hu et al. 2024, arXiv 2312.15112. One released script never trains that network, which it runs
without gradients, and another trains it on the training loss, where it learns to choose the smaller
term. Here it follows the outer loss through one step of the student (UNVERIFIED as the paper's).
"""

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.trilateral import geometry
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.transfer.modules import linear, make_linear
from kd_jax.types import Batch, Context, Model, Objective, Output, Policy, PyTree, weighted_sum

WIDTHS = (32, 16, 1)


def trilateral(
    student: Model,
    teacher: Model,
    *,
    temperature: float = 1.5,
    policy: Policy = own_weights,
    teacher_policy: Policy = frozen_weights("teacher"),
) -> Objective:
    """inner: mean_b a_b T^2 KL(teacher || student) + (1 - a_b) CE_b; outer: CE of other examples.

    Batches have the parts "train" and "other" (held out of the training, not for testing). a_b in
    (0, 1) is a network's, 9 C - 32 - 16 - 1 with leaky ReLU and a sigmoid, of
    `losses.trilateral.geometry`; it is an aux parameter. frozen["class_means"] [C, C]: the
    teacher's mean probabilities of each class, of training examples. For `gradients.bilevel`: the
    plain gradient would let the network choose the smaller of its two terms. Metric "share": the
    mean of a; rows "share": a of each example of "train". For models without a state of their own.
    """

    def outputs(params, frozen, batch: Batch, key, train: bool):
        ours = student.apply(policy(params, frozen), batch, key=key, train=train)
        theirs = teacher.apply(
            teacher_policy(params, frozen), batch, state=frozen.get("teacher_state", {})
        )
        return ours, jax.lax.stop_gradient(theirs)

    def init(key, params, frozen, batch):
        classes = frozen["class_means"].shape[-1]
        widths, keys = (9 * classes, *WIDTHS), jax.random.split(key, len(WIDTHS))
        layers = {
            f"layer_{i}": make_linear(keys[i], widths[i], widths[i + 1]) for i in range(len(WIDTHS))
        }
        return layers, {}

    def loss(params, carry, frozen, batch: Batch, ctx: Context) -> Output:
        one, two = jax.random.split(ctx.key)
        train, other = batch["train"], batch["other"]
        ours, theirs = outputs(params, frozen, train, one, ctx.train)
        s, t, labels = ours.head.logits(), theirs.head.logits(), train["targets"]
        means = jax.lax.stop_gradient(frozen["class_means"])
        shape = geometry(jax.nn.softmax(s), jax.nn.softmax(t), means, labels)
        share = jax.nn.sigmoid(_network(params["aux"], shape))
        soft = temperature**2 * forward_kl(s, t, temperature=temperature)
        values = share * soft + (1 - share) * cross_entropy(s, labels)
        held = student.apply(policy(params, frozen), other, key=two, train=ctx.train)
        return Output(
            {
                "inner": weighted_sum(values, train["weights"]),
                "outer": label_cross_entropy(held, other),
            },
            {"share": weighted_sum(share, train["weights"])},
            {"share": jax.lax.stop_gradient(share)},
        )

    return Objective(init, loss)


def _network(weights: PyTree, x: jax.Array) -> jax.Array:
    for i in range(len(WIDTHS)):
        x = linear(weights[f"layer_{i}"], jax.nn.leaky_relu(x) if i else x)
    return jnp.squeeze(x, -1)
