import numpy as np
import pytest

from kd_jax.data.feedback import Tags, collate_scored, conditional_prefix, filter_documents

TAGS = Tags(98, 99)


def test_documents_are_kept_by_their_mean_score():
    scores = [[0.0, 0.4], [0.1], [0.0, 0.5, 0.2], [0.3, 0.3]]
    assert filter_documents(scores, threshold=0.2).tolist() == [True, True, False, False]
    assert filter_documents([[0.0]] * 3, threshold=0.0).all()
    with pytest.raises(ValueError, match="without segments"):
        filter_documents([[]], threshold=0.2)


def test_every_segment_has_the_tag_of_its_score():
    rng = np.random.default_rng(0)
    segments, scores = [[1, 2], [], [3]], [0.2, 0.7, 0.5]
    found = conditional_prefix(segments, scores, TAGS, threshold=0.5, rng=rng, drop=0.0)
    assert found == [[98, 1, 2], [99], [98, 3]]
    assert segments == [[1, 2], [], [3]]
    rng = np.random.default_rng(0)
    none = conditional_prefix(segments, scores, TAGS, threshold=0.5, rng=rng, drop=1.0)
    assert none == segments


def test_one_tag_in_a_hundred_is_dropped_by_the_seed():
    def tagged(seed):
        rng = np.random.default_rng(seed)
        found = conditional_prefix([[5]] * 20_000, [0.0] * 20_000, TAGS, threshold=0.5, rng=rng)
        return np.array([len(segment) == 2 for segment in found])

    assert 0.008 < 1 - tagged(0).mean() < 0.012
    assert (tagged(0) == tagged(0)).all() and (tagged(0) != tagged(1)).any()


def test_scores_stand_beside_what_is_predicted():
    # Segments a b c | d e | f, so that the first target, b, is of the first segment.
    rows = collate_scored([[1, 2, 3], [4, 5], [6]], [0.1, 0.2, 0.3], length=3)
    assert rows["targets"].tolist() == [[2, 3, 4], [5, 6, 0]]
    np.testing.assert_allclose(rows["scores"], [[0.1, 0.1, 0.2], [0.2, 0.3, 0.0]], rtol=1e-6)
    assert rows["weights"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert rows["scores"].dtype == np.float32


def test_refusals():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="scores: got 1, takes one for each of 2 segments"):
        collate_scored([[1], [2]], [0.1], length=3)
    with pytest.raises(ValueError, match="scores: got 1, takes one for each of 2 segments"):
        conditional_prefix([[1], [2]], [0.1], TAGS, threshold=0.5, rng=rng)
    with pytest.raises(ValueError, match="drop: got 2"):
        conditional_prefix([[1]], [0.1], TAGS, threshold=0.5, rng=rng, drop=2)
