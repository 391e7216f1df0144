import itertools

import numpy as np
import pytest

from kd_jax.evaluation.coverage import estimated_pass_at_n, pass_at_n


def test_exact():
    p = np.array([0.0, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(pass_at_n(p, n=1), p)
    np.testing.assert_allclose(pass_at_n(p, n=4), [0, 0.3439, 0.9375, 1])
    np.testing.assert_allclose(pass_at_n([1e-18], n=1000), [1e-15])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_estimate_is_the_share_of_choices_with_a_right_sample(n):
    for right in range(7):
        marks = [1] * right + [0] * (6 - right)
        share = np.mean([max(choice) for choice in itertools.combinations(marks, n)])
        np.testing.assert_allclose(estimated_pass_at_n([right], [6], n=n), [share])


def test_the_estimate_is_unbiased():
    p, samples, n = 0.3, 8, 5
    counts = np.arange(samples + 1)
    binomial = np.array([len(list(itertools.combinations(range(samples), k))) for k in counts])
    chances = binomial * p**counts * (1 - p) ** (samples - counts)
    found = estimated_pass_at_n(counts, np.full(samples + 1, samples), n=n)
    np.testing.assert_allclose((chances * found).sum(), pass_at_n([p], n=n)[0])


def test_refusals():
    with pytest.raises(ValueError, match="p: got"):
        pass_at_n([1.5], n=1)
    with pytest.raises(ValueError, match="n: got 0"):
        pass_at_n([0.5], n=0)
    with pytest.raises(ValueError, match="n: got 7, takes at most the number of samples, 6"):
        estimated_pass_at_n([1], [6], n=7)
    with pytest.raises(ValueError, match="right: takes"):
        estimated_pass_at_n([7], [6], n=2)
    with pytest.raises(ValueError, match="samples: got shape"):
        estimated_pass_at_n([1], [6, 6], n=2)
