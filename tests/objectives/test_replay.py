"""Where a batch comes from: data, the student, or what the student wrote before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import text_batch
from support.objective_laws import FROZEN, KEY, MODEL, PARAMS

from kd_jax.losses.divergences import forward_kl
from kd_jax.objectives import replay
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.on_policy import draw_keys, on_policy
from kd_jax.objectives.replay import DATA, REPLAY, SAMPLE, adaptive_off_policy, off_policy
from kd_jax.steps import make_eval_step, make_train_step

ROWS = 4
INNER = distil(MODEL, MODEL, {"kd": token_divergence(lambda s, t, y: forward_kl(s, t))})


def write(weights, batch, key):
    """Answers that tell which call wrote them: every new target is the same drawn token."""
    token = jax.random.randint(key, (), 0, 5)
    answer = batch["weights"] > 0
    return {**batch, "targets": jnp.where(answer, token, batch["targets"])}


def test_the_threshold_rises_when_the_loss_has():
    states, state = [], (0.0, np.inf)
    for loss in (2.0, 1.5, 2.05, 2.1, 2.15, 2.2, 9.0):
        state = replay.threshold(*state, loss, eps=0.1)
        states.append([float(x) for x in state])
    expected = [[0, 2], [0, 2], [0, 2], [0.1, 2.1], [0.1, 2.1], [0.2, 2.2], [0.3, 9]]
    np.testing.assert_allclose(states, expected, rtol=1e-6)
    np.testing.assert_allclose(replay.threshold(0.97, 1.0, 2.0)[0], 1.0)


@pytest.mark.parametrize(
    "u, threshold, fresh, filled, expected",
    [
        (0.3, 0.5, 0.4, 10, SAMPLE),
        (0.45, 0.5, 0.4, 10, REPLAY),
        (0.45, 0.5, 0.4, 9, SAMPLE),
        (0.6, 0.5, 0.4, 0, DATA),
        (0.0, 0.0, 0.0, 0, DATA),
    ],
)
def test_sources(u, threshold, fresh, filled, expected):
    assert int(replay.source(u, threshold, fresh, filled, 10)) == expected


def training(capacity=8, start=1.0, every=2, microbatches=1, steps=100, objective=INNER):
    wrapped = adaptive_off_policy(objective, every=every, capacity=capacity, start=start)
    step = make_train_step(wrapped, optax.sgd(0.1), microbatches=microbatches)
    frozen = {**FROZEN, "validation": text_batch(2, seed=9)}
    state = step.init(KEY, PARAMS, frozen, text_batch(ROWS))
    return state, frozen, jax.jit(step.apply), jax.jit(off_policy(write, steps=steps))


@pytest.mark.slow
def test_the_ring_fills_with_what_the_student_writes_and_then_is_read():
    state, frozen, step, prepare = training()
    written = []
    for i in range(2):  # start = 1: sampled while there is room
        batch = prepare(state, frozen, text_batch(ROWS, seed=i))
        assert batch["fresh"].all()
        written.append(np.asarray(batch["targets"]))
        state, _ = step(state, frozen, batch)
        assert int(state.carry[1].filled) == ROWS * (i + 1)
    ring = np.asarray(state.carry[1].rows["targets"])
    np.testing.assert_array_equal(ring, np.concatenate(written))
    # Late in the training nothing is sampled any more.
    late = state._replace(step=jnp.int32(99))
    batch = prepare(late, frozen, text_batch(ROWS, seed=7))
    assert not batch["fresh"].any()
    for row in np.asarray(batch["targets"]):
        assert (ring == row).all(1).any()
    after, _ = step(late, frozen, batch)
    np.testing.assert_array_equal(after.carry[1].rows["targets"], ring)


def test_the_oldest_rows_make_room():
    state, frozen, step, prepare = training(capacity=6)
    for i in range(2):
        batch = prepare(state._replace(step=jnp.int32(0)), frozen, text_batch(ROWS, seed=i))
        state, _ = step(state, frozen, batch)
    ring = state.carry[1]
    assert (int(ring.filled), int(ring.next)) == (6, 2)
    np.testing.assert_array_equal(ring.rows["inputs"][:2], text_batch(ROWS, seed=1)["inputs"][2:])
    np.testing.assert_array_equal(ring.rows["inputs"][4:], text_batch(ROWS, seed=1)["inputs"][:2])


def test_without_a_threshold_it_is_the_objective_on_data():
    state, frozen, step, prepare = training(start=0.0)
    plain = make_train_step(INNER, optax.sgd(0.1))
    other = plain.init(KEY, PARAMS, FROZEN, text_batch(ROWS))._replace(key=state.key)
    for i in range(3):
        batch = text_batch(ROWS, seed=i)
        state, metrics = step(state, frozen, prepare(state, frozen, batch))
        other, expected = plain(other, FROZEN, batch)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)


@pytest.mark.slow
def test_the_validation_is_of_the_new_weights_at_its_steps_alone():
    state, frozen, step, prepare = training(every=2, start=0.0)
    evaluate = make_eval_step(INNER)
    seen = []
    for i in range(3):
        state, _ = step(state, frozen, prepare(state, frozen, text_batch(ROWS, seed=i)))
        loss = evaluate(state.params, {}, frozen, frozen["validation"]).loss
        seen.append((float(state.carry[1].loss), float(loss)))
    np.testing.assert_allclose(seen[0][0], seen[0][1], rtol=1e-6)
    assert seen[1][0] == seen[0][0]
    assert state.carry[1].threshold == 0  # the loss falls


@pytest.mark.slow
def test_microbatches_keep_the_same_rows():
    rings = []
    for microbatches in (1, 2):
        state, frozen, step, prepare = training(microbatches=microbatches)
        state, _ = step(state, frozen, prepare(state, frozen, text_batch(ROWS)))
        rings.append(state.carry[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *rings)


def test_an_evaluation_leaves_the_ring():
    state, frozen, _, _ = training()
    wrapped = adaptive_off_policy(INNER, every=2, capacity=8)
    output = make_eval_step(wrapped)(state.params, state.carry, frozen, text_batch(ROWS))
    expected = make_eval_step(INNER)(state.params, {}, FROZEN, text_batch(ROWS))
    np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-6)
    assert not output.rows


def test_a_ring_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="capacity: got 3, takes at least a batch's rows, 4"):
        training(capacity=3)


@pytest.mark.parametrize("share, low, high", [(0.0, 0, 0), (0.5, 6, 26), (1.0, 32, 32)])
def test_a_share_of_batches_is_the_students_own(share, low, high):
    state = make_train_step(INNER, optax.sgd(0.1)).init(KEY, PARAMS, FROZEN, text_batch(ROWS))
    batch = text_batch(ROWS)
    marked = jax.jit(
        on_policy(lambda w, b, k: {**b, "targets": jnp.full_like(b["targets"], 9)}, share=share)
    )
    own = sum(
        int((marked(state._replace(step=jnp.int32(i)), FROZEN, batch)["targets"] == 9).all())
        for i in range(32)
    )
    assert low <= own <= high


def test_a_share_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"share: got 1.5, takes a number in \[0, 1\]"):
        on_policy(write, share=1.5)


def test_the_keys_of_a_draw_are_not_those_of_the_step():
    state = make_train_step(INNER, optax.sgd(0.1)).init(KEY, PARAMS, FROZEN, text_batch(ROWS))

    def data(keys):
        return {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}

    found: set[tuple[int, ...]] = set()
    for i in range(3):
        at = state._replace(step=jnp.int32(i))
        drawn = data(draw_keys(at))
        own = jax.random.fold_in(at.key, i)
        of_step = [own, *jax.random.split(own, 3)]
        of_step += [part for key in of_step for part in jax.random.split(key, 4)]
        assert len(drawn) == 2 and not drawn & (data(of_step) | found)
        found |= drawn
