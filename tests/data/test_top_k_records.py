"""A teacher's k likeliest tokens as bytes: what comes back, how far off, in how many bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.data.top_k_records import Known, Layout, decode, encode, error_bound

few = settings(max_examples=15, derandomize=True, deadline=None)


def known(layout, length, *, seed=0, slope=1.5):
    """Probabilities that fall as 1 / rank**slope, with noise, of ids in any order."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(1, layout.vocabulary + 1)
    z = -slope * np.log(ranks) + rng.standard_normal((length, layout.vocabulary))
    log_p = z - np.logaddexp.reduce(z, -1, keepdims=True)
    log_p = rng.permuted(log_p, axis=-1)
    ids = np.argsort(-log_p, -1, kind="stable")
    chosen = np.take_along_axis(log_p, ids, -1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(chosen[:, layout.k :]).sum(-1))
    k = slice(layout.k)
    return Known(ids[:, k].astype(np.int32), chosen[:, k].astype(np.float32), tail)


def entries(known):
    """[T, k + 1] probabilities in float64 by ascending id, the tail last."""
    order = np.argsort(known.ids, -1)
    p = np.exp(np.take_along_axis(known.log_probs, order, -1).astype(np.float64))
    return np.concatenate([p, np.exp(known.log_tail.astype(np.float64))[:, None]], -1)


def round_trip(layout, given, weights=None):
    length = len(given.log_tail)
    weights = np.ones(length) if weights is None else weights
    return decode(layout, encode(layout, given, weights), length=length)


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(1, 2), (2, 2), (4, 11), (50, 300), (7, 70_000)]),
    st.sampled_from([4, 8, 9, 16]),
    st.sampled_from([0.0, 1.5, 6.0]),
)
@few
def test_ids_are_exact_and_probabilities_within_the_bound(seed, size, bits, slope):
    layout = Layout(*size, bits)
    given = known(layout, 5, seed=seed, slope=slope)
    found = round_trip(layout, given)
    np.testing.assert_array_equal(found.ids, np.sort(given.ids, -1))
    there, here = entries(given), entries(found)
    np.testing.assert_allclose(here.sum(-1), 1.0, rtol=1e-6)
    assert np.abs(there - here).sum(-1).max() <= error_bound(layout)
    assert [x.dtype for x in found] == [np.int32, np.float32, np.float32]


def test_the_bound_is_near_the_worst_case():
    """One sure token and 49 at the middle between two codes, where their sum weighs most."""
    layout, codes = Layout(50, 1000), 255
    u = np.full(49, 36.5 / codes)  # about 1 / sqrt(49)
    p = np.concatenate([[1.0], u**2 * (1 + 1e-6)])
    given = Known(np.arange(50)[None], np.log(p / p.sum())[None], np.array([-np.inf]))
    off = np.abs(entries(given) - entries(round_trip(layout, given))).sum()
    assert 0.4 * error_bound(layout) < off <= error_bound(layout)


def test_sixteen_bits_are_finer():
    given = known(Layout(50, 1000), 20)
    off = {}
    for bits in (8, 16):
        found = round_trip(Layout(50, 1000, bits), given)
        off[bits] = np.abs(entries(given) - entries(found)).sum(-1).mean()
    assert off[16] < 4e-4 < 1e-3 < off[8] < 0.3 * error_bound(Layout(50, 1000))


def test_a_whole_vocabulary_has_no_tail():
    layout = Layout(11, 11)
    found = round_trip(layout, known(layout, 4))
    assert (found.log_tail == -np.inf).all()
    np.testing.assert_array_equal(found.ids, np.tile(np.arange(11), (4, 1)))
    np.testing.assert_allclose(np.exp(found.log_probs).sum(-1), 1.0, rtol=1e-6)


def test_what_is_far_below_the_largest_reads_0():
    given = Known(np.array([[3, 1]]), np.log([[0.9, 1e-7]]), np.log([0.1]))
    found = round_trip(Layout(2, 5), given)
    assert found.log_probs[0, 0] == -np.inf
    np.testing.assert_allclose(found.log_probs[0, 1], np.log(0.9), atol=1e-3)


def test_only_weighed_positions_are_kept():
    layout = Layout(3, 40)
    given = known(layout, 8)
    weights = np.array([0, 0.5, 1, 0, 0, 2, 1, 0])
    spoilt = Known(*(x.copy() for x in given))
    spoilt.log_probs[weights == 0] = np.nan
    found = round_trip(layout, spoilt, weights)
    whole = round_trip(layout, given)
    for some, every in zip(found, whole, strict=True):
        np.testing.assert_array_equal(some[weights > 0], every[weights > 0])
        assert (some[weights == 0] == 0).all()
    nothing = round_trip(layout, spoilt, np.zeros(8))
    assert all((x == 0).all() for x in nothing)


@pytest.mark.parametrize(
    ("k", "vocabulary", "bits", "most"),
    [(50, 49_152, 8, 114), (128, 49_152, 8, 256), (50, 131_072, 6, 114), (128, 131_072, 8, 276)],
)
def test_bytes_a_token(k, vocabulary, bits, most):
    """All of a record, over its tokens: the figures of the module's docstring."""
    layout, size = Layout(k, vocabulary, bits), 128
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(size)])
    z = -1.5 * np.log(np.arange(1, vocabulary + 1)) + rng.standard_normal((size, vocabulary))
    log_p = -np.sort(-z, -1) - np.logaddexp.reduce(z, -1, keepdims=True)
    given = Known(ids, log_p[:, :k], np.log(np.exp(log_p[:, k:]).sum(-1)))
    found = len(encode(layout, given, np.ones(size))) / size
    assert 0.95 * most < found <= most


def test_bytes_that_are_no_record_are_refused():
    layout = Layout(3, 40)
    record = encode(layout, known(layout, 6), np.ones(6))
    damaged = bytearray(record)
    damaged[-3] ^= 255
    for other in (b"", b"nonsense", record[:-1], bytes(damaged)):
        with pytest.raises(ValueError, match="record: not of 6 positions and k = 3"):
            decode(layout, other, length=6)
    with pytest.raises(ValueError, match="k = 4"):
        decode(Layout(4, 40), record, length=6)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="k: got 5, takes 1 to the vocabulary's 4"):
        Layout(5, 4).checked()
    with pytest.raises(ValueError, match="bits: got 3, takes 4 to 16"):
        Layout(2, 4, 3).checked()
    one, tail = np.log([[0.5, 0.5]]), np.array([-np.inf])
    for ids in ([[1, 1]], [[0, 7]], [[-1, 2]], [[0, 1, 2]]):
        with pytest.raises(ValueError, match="ids: takes 2 different ones, 0 to 6"):
            encode(Layout(2, 7), Known(np.array(ids), np.resize(one, (1, len(ids[0]))), tail), [1])
    with pytest.raises(ValueError, match="log_probs: got a position without a finite one"):
        encode(Layout(2, 7), Known(np.array([[0, 1]]), one * np.nan, tail), [1])
