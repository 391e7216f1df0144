"""Re-introduction in context: gains by hand, and contexts that are what they should be."""

import numpy as np
import pytest

from kd_jax.evaluation import reintroduction


def test_gains_by_hand():
    found = reintroduction.gains([0.1, 0.4], [0.9, 0.4], [0.2, 0.1])
    np.testing.assert_allclose(found.context, [0.8, 0.0])
    np.testing.assert_allclose(found.control, [0.1, -0.3])
    np.testing.assert_allclose(found.net, [0.7, 0.3])


def test_an_empty_context_gains_nothing():
    plain = [0.3, 0.7]
    found = reintroduction.gains(plain, plain, plain)
    np.testing.assert_array_equal([found.context, found.control, found.net], np.zeros((3, 2)))


def test_contexts_that_hold_the_answer():
    answer = "She was born in Kuwait City."
    given, implied = "Ada? She was born in Kuwait City, in 1956.", "Born in Kuwait City, she was."
    assert reintroduction.gives_away(given, answer)
    assert not reintroduction.gives_away(implied, answer)
    assert reintroduction.copyable(given, answer) == 1.0
    # The longest common subsequence is "born in Kuwait City", 4 of 6.
    assert reintroduction.copyable(implied, answer) == pytest.approx(4 / 6)
    assert not reintroduction.gives_away(given, "")
    assert not reintroduction.gives_away("", answer)


def test_a_control_is_as_long():
    pieces = [[1, 2, 3], [4, 5], [6, 7, 8]]
    assert reintroduction.control_tokens(pieces, 6) == [1, 2, 3, 4, 5, 6]
    assert reintroduction.control_tokens(pieces, 3) == [1, 2, 3]
    assert reintroduction.control_tokens(pieces, 0) == []
    assert pieces == [[1, 2, 3], [4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="pieces: got 8 tokens, takes at least length, 9"):
        reintroduction.control_tokens(pieces, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), r"plain: got shape \(0,\)"),
        (([1.0], [1.0, 2.0], [1.0]), "context: got shape"),
        (([1.0], [1.0], [np.nan]), "control: takes finite numbers"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        reintroduction.gains(*arguments)
