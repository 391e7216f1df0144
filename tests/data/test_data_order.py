"""The order of records and the sources built on it."""

import functools
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.data import arrays as arrays_lib
from kd_jax.data import order, pairs, sources

BIG = 2**64


def philox(seed: int, word: int, count: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011, table 2) in plain integers: the independent oracle."""
    found: list[int] = []
    block = 0
    while len(found) < count:
        block += 1  # numpy advances the counter before its first block
        c, k = [block, 0, 0, 0], [seed, word]
        for _ in range(10):
            high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], BIG)
            high1, low1 = divmod(0xCA5A826395121157 * c[2], BIG)
            c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
            k = [(k[0] + 0x9E3779B97F4A7C15) % BIG, (k[1] + 0xBB67AE8584CAA73B) % BIG]
        found += c
    return found[:count]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 0), (7, 3), (2**64 - 1, 1)])
def test_order_is_the_sort_of_philox_bits(seed, epoch):
    size = 11
    raw = philox(seed, zlib.crc32(b"digits") << 32 | epoch, size)
    expected = sorted(range(size), key=raw.__getitem__)
    got = order.order(seed, "digits", size, epoch * size + np.arange(size))
    np.testing.assert_array_equal(got, expected)


def test_uniform_is_the_remainder_of_philox_bits():
    raw = philox(5, zlib.crc32(b"retain") << 32 | 2, 9)
    got = order.uniform(5, "retain", 9, 18 + np.arange(9))
    np.testing.assert_array_equal(got, [(x >> 1) % 9 for x in raw])


@given(
    seed=st.integers(0, 2**64 - 1),
    size=st.integers(1, 40),
    epoch=st.integers(0, 1000),
)
def test_every_epoch_is_a_permutation(seed, size, epoch):
    got = order.order(seed, "x", size, epoch * size + np.arange(size))
    np.testing.assert_array_equal(np.sort(got), np.arange(size))


def test_epochs_seeds_and_sources_differ():
    positions = np.arange(100)
    runs = [
        order.order(0, "a", 100, positions),
        order.order(0, "a", 100, positions + 100),
        order.order(1, "a", 100, positions),
        order.order(0, "b", 100, positions),
        order.uniform(0, "a", 100, positions),
    ]
    assert len({tuple(run) for run in runs}) == len(runs)


def test_uniform_draws_with_replacement_and_evenly():
    got = order.uniform(0, "a", 50, np.arange(50_000))
    counts = np.bincount(got, minlength=50)
    assert len(set(got[:50])) < 50
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


@given(start=st.integers(0, 100), length=st.integers(0, 60), size=st.integers(1, 20))
def test_order_at_many_positions_is_the_order_at_each(start, length, size):
    positions = start + np.arange(length)
    together = order.order(3, "x", size, positions)
    alone = [int(order.order(3, "x", size, np.array([p]))[0]) for p in positions]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    ("seed", "size", "positions", "named"),
    [(-1, 5, [0], "seed"), (2**64, 5, [0], "seed"), (0, 0, [0], "size"), (0, 5, [-1], "positions")],
)
def test_order_refuses(seed, size, positions, named):
    with pytest.raises(ValueError, match=named):
        order.order(seed, "x", size, np.array(positions))


def source(size=30, batch_size=8, name="a", **options):
    arrays = {"inputs": np.arange(size, dtype=np.int32)}
    return sources.array_batches(arrays, seed=1, name=name, batch_size=batch_size, **options)


def join(parts):
    return arrays_lib.concatenate(parts)


def check_hosts(batches, batch_size=8):
    """1, 2 and 4 hosts see the same global batch, at steps in any order."""
    for step in (5, 0, 3, 1000):
        whole = batches(step, slice(0, batch_size))
        for hosts in (2, 4):
            n = batch_size // hosts
            parts = [batches(step, slice(h * n, (h + 1) * n)) for h in range(hosts)]
            assert_same(join(parts), whole)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[key])
        else:
            assert value.dtype == right[key].dtype
            np.testing.assert_array_equal(value, right[key])


def read(record):
    return record * 10


def collate(examples):
    return {"inputs": np.array(examples, np.int32)}


def test_batches_do_not_depend_on_hosts():
    check_hosts(source())
    check_hosts(source(draw=order.uniform))
    forget, retain = {"forget": {"x": np.arange(5)}}, {"retain": {"x": np.arange(9)}}
    check_hosts(pairs.forget_retain(forget, retain, seed=0, batch_size=8))
    records = list(range(13))
    check_hosts(sources.record_batches(records, read, collate, seed=0, name="r", batch_size=8))
    mixed = sources.mixture([source(name="a"), source(name="b")], seed=0, batch_size=8)
    check_hosts(functools.partial(mixed, weights=[0.3, 0.7]))


def test_a_source_resumes_from_the_step_alone():
    through = source()
    seen = [through(step, slice(0, 8)) for step in range(12)]
    resumed = source()
    for step in (7, 8, 11):
        assert_same(resumed(step, slice(0, 8)), seen[step])


def test_an_epoch_of_batches_is_a_permutation_of_the_records():
    batches = source(size=12, batch_size=8)  # 3 batches are 2 epochs: batch 1 holds both
    rows = np.concatenate([batches(step, slice(None))["index"] for step in range(3)])
    np.testing.assert_array_equal(np.sort(rows[:12]), np.arange(12))
    np.testing.assert_array_equal(np.sort(rows[12:]), np.arange(12))
    assert rows[:12].tolist() != rows[12:].tolist()


def test_array_batches_have_weights_and_index_and_keep_rows_together():
    batch = source()(4, slice(2, 6))
    np.testing.assert_array_equal(batch["inputs"], batch["index"])
    np.testing.assert_array_equal(batch["weights"], np.ones(4, np.float32))
    assert batch["index"].dtype == np.int32
    given_index = {"inputs": np.arange(3), "index": np.array([7, 8, 9], np.int32)}
    batch = sources.array_batches(given_index, seed=0, name="x", batch_size=3)(0, slice(None))
    np.testing.assert_array_equal(batch["index"], batch["inputs"] + 7)


def test_array_batches_of_pairs():
    half = {"inputs": np.arange(6)[:, None], "index": np.arange(6)}
    arrays = {"chosen": half, "rejected": {**half, "inputs": half["inputs"] + 100}}
    batch = sources.array_batches(arrays, seed=0, name="x", batch_size=4)(1, slice(None))
    assert batch.keys() == arrays.keys()
    np.testing.assert_array_equal(batch["chosen"]["inputs"] + 100, batch["rejected"]["inputs"])


def test_sources_refuse():
    with pytest.raises(ValueError, match="leading axes"):
        arrays = {"inputs": np.zeros(3), "targets": np.zeros(4)}
        sources.array_batches(arrays, seed=0, name="x", batch_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        source(batch_size=0)
    for rows in (slice(0, 9), slice(3, 3), slice(0, 8, 2)):
        with pytest.raises(ValueError, match="rows"):
            source()(0, rows)


def test_records_are_read_when_needed_and_numbered():
    asked = []

    class Records:
        def __len__(self):
            return 20

        def __getitem__(self, i):
            raise AssertionError("one by one")

        def __getitems__(self, numbers):
            asked.append(numbers)
            return numbers

    batches = sources.record_batches(Records(), read, collate, seed=0, name="r", batch_size=5)
    assert asked == []
    batch = batches(2, slice(1, 4))
    np.testing.assert_array_equal(batch["inputs"], 10 * batch["index"])
    expected = order.order(0, "r", 20, np.arange(11, 14))
    np.testing.assert_array_equal(batch["index"], expected)
    assert asked == [expected.tolist()]


def test_mixture_follows_its_weights():
    parts = [source(name="a"), source(name="b"), source(name="c")]
    mixed = sources.mixture(parts, seed=0, batch_size=8)
    whole = slice(0, 8)
    rows = [mixed(step, whole, [0.5, 0.0, 0.25]) for step in range(500)]
    counts = np.bincount(np.concatenate([r["source"] for r in rows]), minlength=3)
    assert counts[1] == 0
    np.testing.assert_allclose(counts[[0, 2]] / 4000, [2 / 3, 1 / 3], atol=0.03)
    for step, weights in ((3, [1, 1, 1]), (9, [0, 0, 1]), (4, [1e-9, 5, 5])):
        batch = mixed(step, whole, weights)
        alone = [part(step, whole)["inputs"] for part in parts]
        expected = [alone[s][r] for r, s in enumerate(batch["source"])]
        np.testing.assert_array_equal(batch["inputs"], expected)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]])
def test_mixture_refuses(weights):
    mixed = sources.mixture([source(), source()], seed=0, batch_size=8)
    with pytest.raises(ValueError, match="weights"):
        mixed(0, slice(0, 8), weights)


def test_prefetch_gives_the_same_batches_in_order():
    batches = source()
    ahead = sources.prefetch(batches, rows=slice(0, 4), start=3, steps=9)
    for step, batch in zip(range(3, 9), ahead, strict=True):
        assert_same(batch, batches(step, slice(0, 4)))


def test_forget_anchors_and_retain_is_uniform():
    forget, retain = {"x": np.arange(8)}, {"x": np.arange(100, 140)}
    beside = {"forget": forget, "refusal": {"x": forget["x"] + 50}}
    batches = pairs.forget_retain(beside, {"retain": retain}, seed=3, batch_size=4)
    seen = join([batches(step, slice(None)) for step in range(400)])
    epochs = seen["forget"]["x"].reshape(-1, 8)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(8), (200, 1)))
    np.testing.assert_array_equal(seen["refusal"]["x"], seen["forget"]["x"] + 50)
    retained = seen["retain"]["x"] - 100
    assert len(set(retained[:40])) < 40  # with replacement
    counts = np.bincount(retained, minlength=40)
    assert abs(counts - 40).max() < 5 * np.sqrt(40)
    with pytest.raises(ValueError, match="forget: got .*'refusal': 40"):
        pairs.forget_retain(beside | {"refusal": retain}, {"retain": retain}, seed=3, batch_size=4)


def test_pad_rows_is_marked():
    batch = {
        "inputs": np.arange(6).reshape(3, 2),
        "weights": np.ones((3, 2), np.float32),
        "index": np.arange(3, dtype=np.int32),
    }
    padded = arrays_lib.pad_rows({"forget": batch}, 5)["forget"]
    np.testing.assert_array_equal(padded["inputs"], [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1]])
    np.testing.assert_array_equal(padded["index"], [0, 1, 2, -1, -1])
    np.testing.assert_array_equal(padded["weights"].sum(1), [2, 2, 2, 0, 0])
    with pytest.raises(ValueError, match="rows"):
        arrays_lib.pad_rows(batch, 2)
