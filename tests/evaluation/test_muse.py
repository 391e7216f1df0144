"""MUSE's criteria against the card's figures and what they must be by definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.evaluation import muse
from kd_jax.evaluation.muse import Met, Scores


def test_texts():
    verbatim = muse.verbatim_memorisation(["to be or not", "x"], ["to be or not", "y z"])
    np.testing.assert_allclose(verbatim, [100, 0])
    # LCS 2 of 3 and 4 tokens: 2 * 2 / 7; "cats" and "cat" differ, for nothing is stemmed.
    np.testing.assert_allclose(
        muse.verbatim_memorisation(["the cats sat"], ["the cat sat down"]), 100 * 4 / 7
    )
    answers = ["London\n\nQuestion: and then?", "Paris\nQuestion: x"]
    np.testing.assert_allclose(muse.knowledge_memorisation(answers, ["London", "Rome"]), [100, 0])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a", "a"),
        ("a\n\nb\nQuestion", "a"),
        ("a\nb\nQuestion: c\n\nd", "a\nb"),
        ("a Question: b", "a "),
        ("Question: b", ""),
    ],
)
def test_an_answer_ends_at_the_first_stop(text, kept):
    assert muse.cut(text) == kept


def test_prompt():
    assert muse.question_prompt([("a?", "b")], "c?") == (
        "Question: a?\nAnswer: b\n\nQuestion: c?\nAnswer: "
    )


def test_privacy_leakage_by_hand():
    # Card [79]: an AUC of 0.0009 against News' 0.4772.
    np.testing.assert_allclose(muse.privacy_leakage(0.0009, 0.4772), -99.811400, rtol=1e-6)
    assert muse.privacy_leakage(0.4772, 0.4772) == 0.0


def test_orientation_of_the_auc():
    remembered, unseen = [0.1, 0.2, 0.3], [2.0, 3.0]
    assert muse.forget_auc(remembered, unseen) == 0.0
    assert muse.forget_auc(unseen, remembered) == 1.0
    # Card M6, by hand: its AUC is 2/3, this is 1 - that.
    np.testing.assert_allclose(muse.forget_auc([1, 2, 3], [2.5, 4, 5, 0.5]), 1 / 3, rtol=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1), st.lists(st.integers(0, 4), min_size=1))
def test_auc_of_all_pairs_with_ties(a, b):
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert muse.forget_auc(a, b) == pytest.approx(np.mean(pairs))
    assert muse.forget_auc(a, b) == pytest.approx(1 - muse.forget_auc(b, a))


# Table 3, News: verbatim, knowledge of forget, privacy leakage, knowledge of retain.
RETRAINED = Scores(20.8, 33.1, 0.0, 55.0)


@pytest.mark.parametrize(
    ("scores", "held"),
    [
        (Scores(58.4, 63.9, -99.8, 55.2), Met(False, False, False, True)),  # target
        (Scores(0.0, 0.0, 5.2, 0.0), Met(True, True, False, False)),  # GA
        (Scores(4.9, 31.0, 108.1, 27.3), Met(True, True, False, False)),  # GA + retain
        (Scores(1.2, 54.6, 105.8, 40.5), Met(True, False, False, False)),  # NPO + retain
        (RETRAINED, Met(True, True, True, True)),
        (RETRAINED._replace(privacy_leakage=-5.0), Met(True, True, True, True)),
    ],
)
def test_criteria_met(scores, held):
    assert muse.met(scores, RETRAINED) == held


def test_curve():
    better, worse = RETRAINED._replace(knowledge_retain=60.0), Scores(30.0, 10.0, -50.0, 45.0)
    found = muse.curve({3.3: (worse, RETRAINED), 0.8: (better, RETRAINED)})
    np.testing.assert_array_equal(found.places, [0.8, 3.3])
    np.testing.assert_array_equal(found.scores["verbatim"], [20.8, 30.0])
    np.testing.assert_array_equal(found.met["verbatim"], [True, False])
    np.testing.assert_array_equal(found.met["knowledge_forget"], [True, True])
    np.testing.assert_array_equal(found.lost, [0.0, 15.0])


def test_chosen_epoch():
    assert muse.chosen_epoch([60, 56, 54, 57, 20], 55.0) == 2
    assert muse.chosen_epoch([60, 55], 55.0) == 1  # never below: the last
    assert muse.chosen_epoch([10], 55.0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: muse.verbatim_memorisation(["a"], []), "truths: got 0 texts"),
        (lambda: muse.knowledge_memorisation([], []), "truths: got 0 texts"),
        (lambda: muse.forget_auc([], [1.0]), r"got shape \(0,\)"),
        (lambda: muse.privacy_leakage(1.5, 0.5), "model_auc: got -0.5"),
        (lambda: muse.curve({}), "scores: got nothing"),
        (lambda: muse.chosen_epoch([], 1.0), "utility: got nothing"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
