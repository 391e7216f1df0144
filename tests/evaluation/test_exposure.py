"""Ranks in bits: Carlini et al.'s definition, worked by hand."""

import numpy as np
import pytest

from kd_jax.evaluation.exposure import exposure


def test_worked_ranks():
    others = np.arange(1.0, 10_000.0)
    assert exposure(0.5, others) == pytest.approx(13.287712, abs=1e-6)
    assert exposure(1e5, others) == pytest.approx(0.0, abs=1e-9)
    assert exposure(3.5, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(np.log2(5) - np.log2(4))


def test_a_tie_counts_half():
    assert exposure(1.0, [1.0, 1.0, 2.0]) == pytest.approx(2 - 1)


def test_one_that_knows_nothing_gives_about_as_much_as_chance():
    rng = np.random.default_rng(0)
    mean = np.mean([exposure(x[0], x[1:]) for x in rng.random((500, 1000))])
    assert mean == pytest.approx(1 / np.log(2), abs=0.2)


def test_bad_candidates_are_refused():
    with pytest.raises(ValueError, match="others: got shape"):
        exposure(1.0, [])
    with pytest.raises(ValueError, match="got nan"):
        exposure(np.nan, [1.0])
