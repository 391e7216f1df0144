"""Entanglement: the card's pair, finite steps on a small model, probes against exact products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import bigram_model, padded, spoil, text_batch
from support.linear import assert_trees_close

from kd_jax.evaluation.entanglement import (
    Products,
    coefficients,
    conditions,
    exact,
    predicted_changes,
    probed,
    products,
)
from kd_jax.losses.preference import apart, free, margin
from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import forward_token_log_probs, token_log_probs

MODEL = bigram_model()
WEIGHTS = MODEL.init(jax.random.key(1))
REFERENCE = MODEL.init(jax.random.key(7))
# The first three rejected rows are the chosen ones but for their first token.
CHOSEN, OTHERS = text_batch(6, 7, seed=0), text_batch(6, 7, seed=1)
NEARLY = CHOSEN | {"targets": CHOSEN["targets"].at[:, 1].add(1) % 5}
REJECTED = jax.tree.map(lambda x, y: jnp.concatenate([x[:3], y[3:]]), NEARLY, OTHERS)
LOSSES = {
    "dpo": functools.partial(margin.dpo, beta=0.1),
    "simpo": functools.partial(free.simpo, beta=2.0, gamma=1.0),
    "nca": functools.partial(apart.nca, beta=0.5),
    "cpo+nll": lambda pairs: free.cpo(pairs, beta=0.1) - 0.3 * pairs.policy_chosen,
}


def log_probs(weights, rows):
    found = token_log_probs(MODEL.apply(weights, rows).head, rows["targets"])
    return sequence_log_probs(found, rows["weights"])


def forward_log_probs(weights, rows):
    found = forward_token_log_probs(MODEL.apply(weights, rows).head, rows["targets"], chunk=3)
    return sequence_log_probs(found, rows["weights"])


def pairs_at(weights):
    lengths = ((rows["weights"] != 0).sum(1).astype(jnp.float32) for rows in (CHOSEN, REJECTED))
    sums = (log_probs(w, rows) for w in (weights, REFERENCE) for rows in (CHOSEN, REJECTED))
    return Pairs(*sums, *lengths)


EXACT = jax.jit(functools.partial(exact, log_probs))(WEIGHTS, CHOSEN, REJECTED)


def test_the_pair_of_the_card():
    found = products({"a": jnp.array([[1.0, 2.0]]), "b": jnp.zeros((1, 1))}, {
        "a": jnp.array([[2.0, 3.0]]), "b": jnp.full((1, 1), 0.5)
    })  # fmt: skip
    np.testing.assert_allclose([x[0] for x in found], [8, 5, 13.25], rtol=1e-6)
    np.testing.assert_allclose(found.cosine, 8 / np.sqrt(5 * 13.25), rtol=1e-6)
    changes = predicted_changes(found, jnp.ones(1), jnp.ones(1), 1.0)
    np.testing.assert_allclose([x[0] for x in changes], [-3, -5.25], rtol=1e-6)
    assert [bool(x[0]) for x in conditions(found)] == [False, True]


def case(inner, chosen, rejected, *more):
    found = Products(*(jnp.array([float(x)]) for x in (inner, chosen, rejected)))
    return tuple(bool(x[0]) for x in conditions(found, *more))


def test_cases_of_the_conditions():
    assert case(0, 1, 2) == (True, True)
    assert case(-5, 1, 2) == (True, True)
    assert case(2, 1, 3) == (False, True)  # both fall
    assert case(2, 3, 1) == (True, False)  # both rise
    # A larger coefficient of the chosen, as a regulariser makes it, lifts both.
    assert case(2, 1, 3, 3.0, 1.0) == (True, False)
    found = Products(*(jnp.zeros(1) for _ in range(3)))
    np.testing.assert_array_equal(found.cosine, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_small_step_changes_log_probs_as_predicted(name):
    """Each pair by itself, measured in float32 by a step of 1e-3."""
    rate, pairs = 1e-3, pairs_at(WEIGHTS)
    d_chosen, d_rejected = coefficients(LOSSES[name], pairs)
    expected = predicted_changes(EXACT, d_chosen, d_rejected, rate)
    rises, falls = conditions(EXACT, d_chosen, d_rejected)

    @jax.jit
    def after(i):
        step = jax.grad(lambda w: LOSSES[name](pairs_at(w))[i])(WEIGHTS)
        moved = pairs_at(jax.tree.map(lambda x, g: x - rate * g, WEIGHTS, step))
        return moved.policy_chosen[i], moved.policy_rejected[i]

    for i in range(6):
        chosen, rejected = (
            float(x)
            for x in np.subtract(after(i), [pairs.policy_chosen[i], pairs.policy_rejected[i]])
        )
        np.testing.assert_allclose(chosen, expected.chosen[i], rtol=0.05, atol=3e-6)
        np.testing.assert_allclose(rejected, expected.rejected[i], rtol=0.05, atol=3e-6)
        assert bool(rises[i]) == (expected.chosen[i] >= 0)
        assert bool(falls[i]) == (expected.rejected[i] <= 0)
    assert not bool(jnp.all(rises & falls)), "none of the pairs is entangled"


def test_coefficients_are_those_of_the_chain_rule():
    pairs = pairs_at(WEIGHTS)
    found = {name: coefficients(loss, pairs) for name, loss in LOSSES.items()}
    assert_trees_close(*found["dpo"])
    ratio = found["simpo"][0] / found["simpo"][1]
    np.testing.assert_allclose(ratio, pairs.rejected_lengths / pairs.chosen_lengths, rtol=1e-4)
    plain = coefficients(functools.partial(free.cpo, beta=0.1), pairs)
    np.testing.assert_allclose(found["cpo+nll"][0], plain[0] + 0.3, rtol=1e-5)
    np.testing.assert_allclose(found["cpo+nll"][1], plain[1], rtol=1e-5)


def test_exact_products_are_of_each_pairs_own_gradients():
    def gradient(rows, i):
        one = jax.tree.map(lambda x: x[i : i + 1], rows)
        found = jax.grad(lambda weights: log_probs(weights, one)[0])(WEIGHTS)
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(found)])

    for i in (0, 3):
        first, second = gradient(CHOSEN, i), gradient(REJECTED, i)
        expected = [first @ second, first @ first, second @ second]
        np.testing.assert_allclose([x[i] for x in EXACT], expected, rtol=1e-4)


def test_padding_moves_no_product():
    for change in (spoil, lambda rows: padded(rows, 2)):
        found = jax.jit(functools.partial(exact, log_probs))(
            WEIGHTS, change(CHOSEN), change(REJECTED)
        )
        assert_trees_close(jax.tree.map(lambda x: x[:6], found), EXACT, rtol=1e-4, atol=1e-4)


def test_probes_are_unbiased_with_the_error_that_they_say():
    probe = jax.jit(functools.partial(probed, forward_log_probs, probes=4000))
    mean, error = probe(WEIGHTS, CHOSEN, REJECTED, key=jax.random.key(3))
    for name in Products._fields:
        found, spread, truth = (np.asarray(getattr(x, name)) for x in (mean, error, EXACT))
        assert (np.abs(found - truth) < 4 * spread).all(), name
    squares = EXACT.chosen * EXACT.rejected + EXACT.inner**2
    np.testing.assert_allclose(error.inner, np.sqrt(squares / 4000), rtol=0.2)
    np.testing.assert_allclose(error.chosen, np.sqrt(2 / 4000) * EXACT.chosen, rtol=0.2)
    with pytest.raises(ValueError, match="probes: got 1, takes at least 2"):
        probed(log_probs, WEIGHTS, CHOSEN, REJECTED, key=jax.random.key(0), probes=1)


def test_log_probs_for_forward_mode_are_the_streamed_ones():
    head = MODEL.apply(WEIGHTS, CHOSEN).head
    found = forward_token_log_probs(head, CHOSEN["targets"], chunk=3)
    np.testing.assert_allclose(found, token_log_probs(head, CHOSEN["targets"]), rtol=1e-6)
    direction = jax.tree.map(jnp.ones_like, WEIGHTS)
    _, pushed = jax.jvp(lambda w: forward_log_probs(w, CHOSEN), (WEIGHTS,), (direction,))
    pulled = jax.jacrev(lambda w: log_probs(w, CHOSEN))(WEIGHTS)
    expected = sum(x.reshape(6, -1).sum(1) for x in jax.tree.leaves(pulled))
    np.testing.assert_allclose(pushed, expected, rtol=1e-4, atol=1e-4)
