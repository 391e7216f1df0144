import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.merging.disk import selection
from kd_jax.merging.disk.selection import MAGNITUDE, Largest, Selection, cut_of

FLOATS = st.floats(width=32, allow_nan=False)


def bits_of(x):
    return np.asarray(x, np.float32).view(np.uint32) & MAGNITUDE


def blocks_of(bits, n):
    return [bits[i : i + n] for i in range(0, len(bits), n)]


def passes(select, blocks):
    """How many passes it took."""
    count = 0
    while select.cut is None:
        for block in blocks:
            select.feed(block)
        select.finish()
        count += 1
    return count


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS), st.data())
def test_a_cut_is_the_kth_largest_magnitude(x, data):
    k = data.draw(st.integers(1, len(x)))
    bits = bits_of(x)
    cut = cut_of(blocks_of(bits, 7), k)
    value = np.partition(np.abs(x), len(x) - k)[len(x) - k]
    assert np.uint32(cut.bits).view(np.float32) == value
    assert cut.ties == k - np.count_nonzero(np.abs(x) > value)
    assert cut.all_ties == (cut.ties == np.count_nonzero(np.abs(x) == value))


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, -1.0, 1.0, 2.0])),
    st.data(),
    st.integers(1, 60),
)
def test_masks_keep_exactly_k_the_first_of_equals(x, data, block):
    k = data.draw(st.integers(1, len(x)))
    bits = bits_of(x)
    largest = Largest(cut_of([bits], k))
    masks = [largest.mask(b, np.empty(len(b), bool)) for b in blocks_of(bits, block)]
    expected = np.zeros(len(x), bool)
    expected[np.argsort(-np.abs(x), kind="stable")[:k]] = True
    np.testing.assert_array_equal(np.concatenate(masks), expected)


@pytest.fixture
def small(monkeypatch):
    """As if some thousands of numbers were too many to be collected."""
    monkeypatch.setattr(selection, "_SMALL", 1)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.999])
def test_with_a_good_sample_one_pass_is_enough(small, share):
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    bits = bits_of(x)
    k = int(share * len(x))
    select = Selection(len(x), k, bits[::40].reshape(50, 100))
    assert passes(select, blocks_of(bits, 4096)) == 1
    assert select.cut.bits == np.sort(bits)[len(x) - k]


@pytest.mark.parametrize(
    "sample", [None, np.float32([1e-3] * 50), np.float32([1e30] * 50)], ids=["none", "low", "high"]
)
@pytest.mark.parametrize("k", [1, 777, 30_000, 50_000])
def test_without_or_with_a_misleading_sample_it_is_exact_all_the_same(small, sample, k):
    x = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    bits = bits_of(x)
    select = Selection(len(x), k, None if sample is None else bits_of(sample).reshape(5, 10))
    assert passes(select, blocks_of(bits, 4096)) <= 4
    assert select.cut.bits == np.sort(bits)[len(x) - k]


def test_many_equal_numbers_are_not_collected(small):
    x = np.repeat(np.float32([3.0, 1.0, 0.0]), [100, 40_000, 10_000])
    bits = bits_of(x)
    select = Selection(len(x), 1000, bits[::50].reshape(6, -1))
    assert passes(select, blocks_of(bits, 4096)) > 1
    assert (select.cut.ties, select.cut.all_ties) == (900, False)
    assert np.uint32(select.cut.bits).view(np.float32) == 1.0
