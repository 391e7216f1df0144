"""Heads padded to different sizes: refused before a training starts, or the same as unpadded."""

import jax
import jax.numpy as jnp
import optax
import pytest
from support.bigram import text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, MODEL, PARAMS

from kd_jax.losses.divergences import jensen_shannon
from kd_jax.objectives.distil import distil, soft_tokens, token_divergence
from kd_jax.objectives.taid import taid
from kd_jax.steps import make_train_step


def by_parts(make):
    return lambda **options: distil(MODEL, MODEL, {"kd": make(**options)})


def jsd(s, t, y):
    return jensen_shannon(s, t, beta=0.3)


OBJECTIVES = {
    "token_divergence": by_parts(lambda **options: token_divergence(jsd, hard=0.5, **options)),
    "soft_tokens": by_parts(lambda **options: soft_tokens(temperature=2.0, **options)),
    "taid": lambda **options: taid(MODEL, MODEL, steps=10, **options),
}
ALL = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
BATCH = text_batch()


def padded(params, rows):
    extra = jnp.full((rows, params["unembedding"].shape[1]), 2.0)
    return params | {"unembedding": jnp.concatenate([params["unembedding"], extra])}


OURS, THEIRS = padded(PARAMS, 1), FROZEN | {"teacher": padded(FROZEN["teacher"], 3)}


def trained(objective, params, frozen):
    step = make_train_step(objective, optax.sgd(0.5))
    state, metrics = jax.jit(step.apply)(step.init(KEY, params, frozen, BATCH), frozen, BATCH)
    return state.params["model"], metrics["loss"]


@pytest.mark.slow
@ALL
def test_a_step_equals_that_of_the_unpadded_heads(make):
    params, loss = trained(make(vocabulary=5), OURS, THEIRS)
    want = trained(make(), PARAMS, FROZEN)
    left = params | {"unembedding": params["unembedding"][:5]}
    assert_trees_close((left, loss), want)
    assert (params["unembedding"][5:] == 2.0).all()  # no gradient


@ALL
@pytest.mark.parametrize("shapes", [False, True], ids=["arrays", "shapes"])
def test_heads_that_differ_are_refused_at_the_start(make, shapes):
    step = make_train_step(make(), optax.sgd(0.5))
    init = (lambda *given: jax.eval_shape(step.init, *given)) if shapes else step.init
    with pytest.raises(ValueError) as error:
        init(KEY, OURS, THEIRS, BATCH)
    assert str(error.value) == (
        "vocabulary: got none for heads of different sizes (student 6, teacher 8); give "
        "vocabulary=, the number of tokens that they share: of one tokeniser, its size"
    )


@ALL
def test_more_tokens_than_a_head_has_are_refused(make):
    step = make_train_step(make(vocabulary=7), optax.sgd(0.5))
    with pytest.raises(ValueError, match="vocabulary: got 7, takes 1 to 6, the rows of the head"):
        step.init(KEY, OURS, THEIRS, BATCH)
