"""Random labels of classifiers, and random answer options of language models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import spoil, text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, MODEL, PARAMS

from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy, next_token_nll
from kd_jax.objectives.unlearn.random_labels import random_labels, random_options
from kd_jax.steps import make_train_step
from kd_jax.types import Logits, Model, ModelOutput

CLASSES = 4


def free_logits(rows):
    """A 'classifier' whose parameters are the logits of each row."""

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        return ModelOutput(Logits(params["z"][inputs["index"]]), {}, state)

    return Model(lambda key: {"z": jax.random.normal(key, (rows, CLASSES))}, apply)


def rows_batch(rows):
    return {"index": jnp.arange(rows), "weights": jnp.ones(rows)}


def test_random_labels_are_uniform_over_all_classes_and_drawn_again_at_each_step():
    rows = 1000
    model = free_logits(rows)
    objective = random_labels(supervise(model, {"nll": label_cross_entropy}), CLASSES, seed=0)
    step = make_train_step(objective, optax.sgd(1.0))
    zeros = {"z": jnp.zeros((rows, CLASSES))}
    state, batch = step.init(KEY, zeros, {}, rows_batch(rows)), rows_batch(rows)
    apply, drawn = jax.jit(step.apply), []
    for _ in range(2):
        before = state.params["model"]["z"]
        state, metrics = apply(state, {}, batch)
        # The gradient of row i is (p - onehot) / rows: the label is where the logits rose.
        drawn.append(np.argmax(state.params["model"]["z"] - before, -1))
        np.testing.assert_allclose(metrics["loss"], np.log(CLASSES), rtol=1e-2)
    counts = np.bincount(drawn[0], minlength=CLASSES)
    # 250 +- 13.7 each: within five standard deviations.
    assert np.all(np.abs(counts - rows / CLASSES) < 5 * np.sqrt(rows * 0.25 * 0.75))
    assert 0.15 < (drawn[0] == drawn[1]).mean() < 0.35  # a quarter by chance


@pytest.mark.slow
def test_random_labels_do_not_hang_on_microbatches_or_order():
    model, batch = free_logits(8), rows_batch(8)
    params = model.init(KEY)
    objective = random_labels(supervise(model, {"nll": label_cross_entropy}), CLASSES, seed=3)

    def after(microbatches, batch):
        step = make_train_step(objective, optax.sgd(1.0), microbatches=microbatches)
        return jax.jit(step.apply)(step.init(KEY, params, {}, batch), {}, batch)[0].params

    whole = after(1, batch)
    assert_trees_close(after(4, batch), whole)
    assert_trees_close(after(1, jax.tree.map(lambda x: x[::-1], batch)), whole)


@pytest.mark.slow
def test_the_fixed_point_of_random_labels_is_uniform():
    model, batch = free_logits(4), rows_batch(4)
    objective = random_labels(supervise(model, {"nll": label_cross_entropy}), CLASSES, seed=0)
    step = make_train_step(objective, optax.sgd(0.2))

    @jax.jit
    def run(state):
        def one(state, _):
            state, _ = step.apply(state, {}, batch)
            return state, jax.nn.softmax(state.params["model"]["z"])

        return jax.lax.scan(one, state, length=4000)[1]

    p = run(step.init(KEY, {"z": 5 * model.init(KEY)["z"]}, {}, batch))
    np.testing.assert_allclose(p[2000:].mean(0), 1 / CLASSES, atol=0.05)


@pytest.mark.slow
def test_random_options_take_one_whole_row_of_each_question():
    whole = [text_batch(seed=i) for i in range(3)]
    stacked = {n: jnp.stack([b[n] for b in whole], 1) for n in ("inputs", "targets", "weights")} | {
        "index": whole[0]["index"]
    }
    objective = random_options(supervise(MODEL, {"nll": next_token_nll}), seed=1)
    step = jax.jit(make_train_step(objective, optax.sgd(0.5), microbatches=2).apply)
    state = make_train_step(objective, optax.sgd(0.5)).init(KEY, PARAMS, FROZEN, stacked)
    sums = np.zeros((3, 4)), np.zeros((3, 4))
    for i, option in enumerate(whole):
        log_p = jax.nn.log_softmax(MODEL.apply(PARAMS, option).head.logits())
        nll = -jnp.take_along_axis(log_p, option["targets"][..., None], -1)[..., 0]
        sums[0][i], sums[1][i] = (nll * option["weights"]).sum(1), option["weights"].sum(1)
    possible = {
        round(float(sums[0][list(c), range(4)].sum() / sums[1][list(c), range(4)].sum()), 4)
        for c in np.ndindex(3, 3, 3, 3)
    }
    seen = set()
    for number in range(6):
        _, metrics = step(state._replace(step=jnp.int32(number)), FROZEN, stacked)
        seen.add(round(float(metrics["loss"]), 4))
    assert seen <= possible and len(seen) > 2
    same = step(state, FROZEN, stacked | {n: x for n, x in spoil(stacked).items() if n != "index"})
    assert_trees_close(same, step(state, FROZEN, stacked))


def test_random_labels_refuse():
    objective = supervise(MODEL, {"nll": next_token_nll})
    with pytest.raises(ValueError, match="classes: got 1"):
        random_labels(objective, 1, seed=0)
    uneven = {
        "inputs": jnp.zeros((2, 3, 4)),
        "weights": jnp.zeros((2, 2, 4)),
        "index": jnp.arange(2),
    }
    with pytest.raises(ValueError, match=r"options: got|batch: got \[2, 3\] options"):
        random_options(objective, seed=0).init(KEY, PARAMS, FROZEN, uneven)
