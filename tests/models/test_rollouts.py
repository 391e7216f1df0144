"""Answers that a decoder writes into a batch: the prompt stays, the rest is the sampler's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.generating import CONFIG, init

from kd_jax.models import rollouts, sampler
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.on_policy import on_policy
from kd_jax.types import TrainState

PARAMS = init(1.0)
KEY = jax.random.key(3)
# Prompts of 1, 3 and 6 tokens and no answer at all, in rows of 8.
GIVEN = np.array([1, 3, 6, 0])
B, T = len(GIVEN), 8


def batch():
    ids = np.random.default_rng(0).integers(1, 32, (B, T + 1))
    place = np.arange(T)
    first = np.where(GIVEN > 0, GIVEN - 1, T)[:, None]
    weights = (place >= first) & (place < first + 2)
    return {
        "inputs": jnp.asarray(ids[:, :-1], jnp.int32),
        "targets": jnp.asarray(ids[:, 1:], jnp.int32),
        "weights": jnp.asarray(weights, jnp.float32),
        "index": jnp.arange(B, dtype=jnp.int32),
    }


write = jax.jit(
    functools.partial(rollouts.continued, CONFIG),
    static_argnames=("max_new", "temperature", "stop", "top_k", "top_p"),
)


@pytest.mark.slow
def test_prompts_stay_and_the_rest_is_what_the_sampler_draws():
    old = batch()
    new = write(PARAMS, old, KEY, max_new=4, temperature=0.7)
    lengths = jnp.asarray(np.maximum(GIVEN, 1))
    whole = jnp.concatenate([old["inputs"], old["targets"][:, -1:]], 1)
    prompts = jnp.where(jnp.arange(T)[None, :] < lengths[:, None], whole[:, :T], 0)
    drawn, counts = sampler.generate(
        CONFIG, PARAMS, prompts, lengths, KEY, max_new=4, temperature=0.7
    )
    assert set(np.asarray(counts)) == {4}
    for i, given in enumerate(GIVEN):
        tokens = np.append(new["inputs"][i], new["targets"][i, -1])
        np.testing.assert_array_equal(new["inputs"][i, 1:], new["targets"][i, :-1])
        if not given:
            assert not new["weights"][i].any()
            continue
        end = min(given + 4, T + 1)
        np.testing.assert_array_equal(tokens[:given], whole[i, :given])
        np.testing.assert_array_equal(tokens[given:end], drawn[i, : end - given])
        assert not tokens[end:].any()
        place = np.arange(T)
        np.testing.assert_array_equal(new["weights"][i], (place >= given - 1) & (place < end - 1))
    np.testing.assert_array_equal(new["index"], old["index"])


@pytest.mark.slow
def test_the_old_answer_and_padding_move_nothing():
    old = batch()
    place = jnp.arange(T + 1)[None, :]
    spoilt = jnp.where(place >= np.maximum(GIVEN, 1)[:, None], 31, 0)
    whole = jnp.concatenate([old["inputs"], old["targets"][:, -1:]], 1)
    other = jnp.where(spoilt > 0, spoilt, whole)
    changed = {**old, "inputs": other[:, :-1], "targets": other[:, 1:]}
    for a, b in zip(
        *(jax.tree.leaves(write(PARAMS, x, KEY, max_new=3)) for x in (old, changed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_row_ends_with_its_stop_token_which_is_learnt():
    stop = 5
    found = write(PARAMS, batch(), KEY, max_new=6, temperature=3.0, stop=(stop,))
    free = write(PARAMS, batch(), KEY, max_new=6, temperature=3.0)
    ended = 0
    for i, given in enumerate(GIVEN[:3]):
        drawn = np.asarray(free["targets"][i, given - 1 :])[: T + 1 - given][:6]
        hits = np.flatnonzero(drawn == stop)
        count = hits[0] + 1 if len(hits) else len(drawn)
        ended += bool(len(hits))
        assert found["weights"][i].sum() == count
        np.testing.assert_array_equal(found["targets"][i, given - 1 :][:count], drawn[:count])
        assert not found["targets"][i, given - 1 + count :].any()
    assert ended


def test_packed_rows_are_refused():
    packed = batch() | {"segments": jnp.ones((B, T), jnp.int32)}
    with pytest.raises(ValueError, match="batch: got segments, takes rows of one prompt"):
        rollouts.continued(CONFIG, PARAMS, packed, KEY, max_new=2)


@pytest.mark.slow
def test_fresh_answers_are_of_the_model_that_is_named_and_new_in_every_step():
    theirs = init(2.0)

    def prepared(policy, step, params=PARAMS):
        state = TrainState(jnp.int32(step), {"model": params}, {}, {}, jax.random.key(5))
        answers = functools.partial(rollouts.continued, CONFIG, max_new=4, temperature=3.0)
        prepare = jax.jit(on_policy(answers, share=1.0, policy=policy))
        return np.asarray(prepare(state, {"teacher": theirs}, batch())["targets"])

    first = prepared(own_weights, 0)
    assert (first != prepared(own_weights, 1)).any()
    np.testing.assert_array_equal(first, prepared(own_weights, 0))
    # The teacher's do not depend on the student, and are those of a student with its weights.
    of_teacher = frozen_weights("teacher")
    ours = prepared(of_teacher, 0)
    np.testing.assert_array_equal(ours, prepared(of_teacher, 0, params=theirs))
    np.testing.assert_array_equal(ours, prepared(own_weights, 0, params=theirs))
    assert (ours != first).any()
