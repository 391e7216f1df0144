"""CHES and what it is compared with: values of the card, invariances, rows of a batch of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bigram import bigram_model, padded, spoil, text_batch

from kd_jax.evaluation.displacement import (
    ches,
    edit_similarity,
    gains,
    last_state_cosine,
    least_displacing,
)
from kd_jax.objectives.score import displacement_scores
from kd_jax.steps import make_eval_step

# Three states of a chosen completion and two of a rejected one; S+ = (1.5, 0, 3), S- = (0, .5, 3).
CHOSEN = np.array([[1, 0, 2], [0.5, -1, 0], [0, 1, 1]])
REJECTED = np.array([[1, 0, 2], [-1, 0.5, 1]])


def one_pair(chosen, rejected, score=ches, **options):
    ones = (np.ones(len(x)) for x in (chosen, rejected))
    first, second = ones
    return float(score(chosen[None], first[None], rejected[None], second[None], **options)[0])


def test_values_by_hand():
    # <S+, S-> = 9 and |S+|^2 = 11.25; of the means 9 / 6 and 11.25 / 9.
    assert one_pair(CHOSEN, REJECTED) == pytest.approx(-2.25, rel=1e-5)
    assert one_pair(CHOSEN, REJECTED, length_normalised=True) == pytest.approx(0.25, rel=1e-5)
    # Not symmetric: 9 - |S-|^2 = 9 - 9.25.
    assert one_pair(REJECTED, CHOSEN) == pytest.approx(-0.25, rel=1e-5)


@given(st.integers(0, 2**31), st.floats(0.1, 10))
def test_identities(seed, factor):
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
    value, own = one_pair(chosen, rejected), np.square(chosen.sum(0)).sum()
    for options in ({}, {"length_normalised": True}):
        assert one_pair(chosen, chosen[::-1], **options) == pytest.approx(0, abs=1e-5)
    assert one_pair(factor * chosen, factor * rejected) == pytest.approx(
        factor**2 * value, rel=1e-4, abs=1e-4
    )
    assert one_pair(chosen, -chosen) == pytest.approx(-2 * own, rel=1e-5)


def test_where_padding_lies_and_what_it_holds_is_not_read():
    weights = {"chosen": [[0, 1, 1, 1, 0, 0]], "rejected": [[0, 0, 0, 1, 1, 0]]}
    states = {name: np.full((1, 6, 3), np.nan) for name in weights}
    states["chosen"][0, 1:4], states["rejected"][0, 3:5] = CHOSEN, REJECTED
    given = [x for name in weights for x in (states[name], np.array(weights[name]))]
    np.testing.assert_allclose(ches(*given), -2.25, rtol=1e-5)
    np.testing.assert_allclose(ches(*given, length_normalised=True), 0.25, rtol=1e-5)
    cosine = CHOSEN[-1] @ REJECTED[-1] / np.linalg.norm(CHOSEN[-1]) / np.linalg.norm(REJECTED[-1])
    np.testing.assert_allclose(last_state_cosine(*given), cosine, rtol=1e-5)
    empty = [np.zeros_like(x) if i % 2 else x for i, x in enumerate(given)]
    for score in (ches, last_state_cosine):
        np.testing.assert_array_equal(score(*empty), 0)


def test_edit_similarity():
    assert edit_similarity([1, 2, 3], [1, 2, 3]) == 1
    assert edit_similarity([1, 2, 3], [4, 5, 6]) == 0
    # kitten, sitting: three edits of seven letters.
    words = [[ord(c) for c in word] for word in ("kitten", "sitting")]
    assert edit_similarity(*words) == edit_similarity(*words[::-1]) == pytest.approx(4 / 7)
    assert edit_similarity([], [1]) == 0
    with pytest.raises(ValueError, match="two empty ones"):
        edit_similarity([], [])


def test_the_lowest_scores_are_kept_in_order():
    scores = [3.0, -1.0, 2.0, -1.0, 0.0]
    np.testing.assert_array_equal(least_displacing(scores, 0.4), [1, 3])
    np.testing.assert_array_equal(least_displacing(scores, 0.8), [1, 2, 3, 4])
    np.testing.assert_array_equal(least_displacing(scores, 0.01), [1])
    np.testing.assert_array_equal(least_displacing(scores, 1.0), range(5))
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match=f"keep: got {keep}"):
            least_displacing(scores, keep)


def test_who_gains():
    before, after = np.log([[0.5, 0.3, 0.2]]), np.log([[0.1, 0.35, 0.55]])
    found = gains(before, after, 2)
    np.testing.assert_array_equal(found.ids, [[2, 1]])
    np.testing.assert_allclose(found.change, [[0.35, 0.05]], rtol=1e-6)


@pytest.mark.slow
def test_rows_of_a_batch_of_pairs():
    model = bigram_model()
    params = {"model": model.init(jax.random.key(1)), "aux": {}}
    evaluate = jax.jit(make_eval_step(displacement_scores(model)))
    batch = {
        "chosen": text_batch(),
        "rejected": text_batch(seed=1) | {"weights": text_batch()["weights"][::-1]},
    }
    found = evaluate(params, {}, {}, batch).rows
    table = np.asarray(params["model"]["embedding"], np.float64)
    for i in range(4):
        places = [np.flatnonzero(batch[side]["weights"][i]) for side in batch]
        states = [
            table[np.asarray(batch[side]["inputs"])[i, at]]
            for side, at in zip(batch, places, strict=True)
        ]
        expected = {
            "ches": one_pair(*states),
            "ches_normalised": one_pair(*states, length_normalised=True),
            "last_state_cosine": one_pair(*states, last_state_cosine),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-4, atol=1e-5)
    for change in (spoil, padded):
        other = evaluate(params, {}, {}, {side: change(rows) for side, rows in batch.items()}).rows
        for name, x in found.items():
            np.testing.assert_allclose(other[name][:4], x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="takes one with hidden states"):
        make_eval_step(displacement_scores(bigram_model(factored=False)))(params, {}, {}, batch)


def test_float16_states_are_summed_in_float32():
    states = jnp.full((1, 2000, 1), 10.0, jnp.bfloat16)
    ones = jnp.ones((1, 2000))
    found = ches(states, ones, -states, ones)
    np.testing.assert_allclose(found, -2 * 20000.0**2, rtol=1e-5)
