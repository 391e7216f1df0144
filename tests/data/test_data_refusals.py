import collections

import pytest

from kd_jax.data.refusals import SENTENCES, draw


def test_the_list():
    assert len(SENTENCES) == len(set(SENTENCES)) == 60
    assert all(x == x.strip() and x.endswith(".") and x.isascii() for x in SENTENCES)


def test_a_draw_is_a_function_of_the_seed_and_its_beginning_does_not_depend_on_its_length():
    assert draw(200, seed=3)[:70] == draw(70, seed=3)
    assert draw(70, seed=3) != draw(70, seed=4)
    assert draw(0, seed=3) == []
    # 600 draws of 60 sentences: each 10 times, standard deviation 3.2.
    counts = collections.Counter(draw(600, seed=0))
    assert set(counts) == set(SENTENCES)
    assert max(counts.values()) < 10 + 5 * 3.2
    with pytest.raises(ValueError, match="seed: got -1"):
        draw(1, seed=-1)
