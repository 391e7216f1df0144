"""Collation, packing and pairs against rows written out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.data import collate, packing, pairs
from kd_jax.data.collate import Example

EOS = 2


def test_collate_qa_by_hand():
    examples = [Example([5, 6], [7, 8]), Example([9], [3])]
    batch = collate.collate_qa(examples, length=5, eos_id=EOS, pad_id=1)
    np.testing.assert_array_equal(batch["inputs"], [[5, 6, 7, 8, 1], [9, 3, 1, 1, 1]])
    np.testing.assert_array_equal(batch["targets"], [[6, 7, 8, 2, 1], [3, 2, 1, 1, 1]])
    np.testing.assert_array_equal(batch["weights"], [[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(batch["index"], [0, 1])
    dtypes = {name: leaf.dtype for name, leaf in batch.items()}
    assert dtypes == {"inputs": "i4", "targets": "i4", "weights": "f4", "index": "i4"}


def test_a_cut_row_loses_its_end_and_no_eos_is_learnt():
    examples = [Example([5, 6], [7, 8, 9]), Example([5, 6], [7])]
    batch = collate.collate_qa(examples, length=3, eos_id=EOS)
    np.testing.assert_array_equal(batch["targets"], [[6, 7, 8], [6, 7, 2]])
    np.testing.assert_array_equal(batch["weights"], [[0, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(collate.is_cut(examples, length=3), [True, False])


def test_no_eos_is_appended_when_none_is_given():
    batch = collate.collate_qa([Example([5], [7, 8])], length=3, eos_id=None)
    np.testing.assert_array_equal(batch["targets"], [[7, 8, 0]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 0]])


def test_collate_qa_refuses():
    def make(example, **options):
        collate.collate_qa([Example([1], [1]), example], **{"length": 3, "eos_id": EOS} | options)

    with pytest.raises(ValueError, match="number 1 has an empty prompt"):
        make(Example([], [7]))
    with pytest.raises(ValueError, match="nothing of its answer is left"):
        make(Example([1, 2, 3, 4], [7]))
    with pytest.raises(ValueError, match="empty answer"):
        make(Example([1], []), eos_id=None)
    with pytest.raises(ValueError, match="-100"):
        make(Example([1], [-100]))
    with pytest.raises(ValueError, match="pad_id"):
        make(Example([1], [1]), pad_id=-100)
    with pytest.raises(ValueError, match="length"):
        make(Example([1], [1]), length=0)


def test_cut_prompt_keeps_the_answer_and_the_prompts_end():
    example = Example([1, 2, 3, 4, 5], [7, 8])
    cut = collate.cut_prompt(example, length=4)
    assert cut == Example([4, 5], [7, 8])
    assert not collate.is_cut([cut], length=4).any()
    assert collate.cut_prompt(example, length=40) == example
    with pytest.raises(ValueError, match="takes at least 3"):
        collate.cut_prompt(example, length=2)


ids = st.lists(st.integers(3, 50), min_size=1, max_size=9)
examples_strategy = st.lists(st.builds(Example, ids, ids), min_size=1, max_size=12)


@given(examples=examples_strategy, pad=st.integers(0, 60), extra=st.integers(0, 5))
def test_padding_changes_nothing_that_counts(examples, pad, extra):
    fit = collate.fitting_length(examples)
    assert not collate.is_cut(examples, length=fit).any()
    short = collate.collate_qa(examples, length=fit, eos_id=EOS)
    long = collate.collate_qa(examples, length=fit + extra, eos_id=EOS, pad_id=pad)
    counts = long["weights"] > 0
    assert not counts[:, fit:].any()
    for name in ("inputs", "targets", "weights"):
        np.testing.assert_array_equal(
            short[name][short["weights"] > 0], long[name][counts], err_msg=name
        )
    labelled = [long["targets"][i][counts[i]].tolist() for i in range(len(examples))]
    assert labelled == [[*e.answer, EOS] for e in examples]


def test_fitting_length_is_the_smallest_and_a_multiple():
    examples = [Example([1, 2, 3], [4, 5]), Example([1], [2])]
    assert collate.fitting_length(examples) == 5
    assert collate.fitting_length(examples, eos=False) == 4
    assert collate.fitting_length(examples, multiple=8) == 8
    assert collate.is_cut(examples, length=4).tolist() == [True, False]


def test_collate_text_by_hand():
    batch = collate.collate_text([[5, 6, 7], [8, 9]], length=4, eos_id=EOS, pad_id=1)
    # the stream is 5 6 7 2 8 9 2
    np.testing.assert_array_equal(batch["inputs"], [[5, 6, 7, 2], [8, 9, 1, 1]])
    np.testing.assert_array_equal(batch["targets"], [[6, 7, 2, 8], [9, 2, 1, 1]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(batch["index"], [0, 1])


@given(documents=st.lists(ids, min_size=1), length=st.integers(1, 9))
def test_collate_text_has_every_token_once(documents, length):
    batch = collate.collate_text(documents, length=length, eos_id=EOS)
    stream = [token for document in documents for token in (*document, EOS)]
    counts = batch["weights"] > 0
    assert batch["targets"][counts].tolist() == stream[1:]
    assert batch["inputs"][counts].tolist() == stream[:-1]
    assert len(counts) == -(-(len(stream) - 1) // length)


def test_collate_text_refuses():
    for documents in ([], [[4]]):
        with pytest.raises(ValueError, match="at least 2"):
            collate.collate_text(documents, length=4, eos_id=None)
    with pytest.raises(ValueError, match="-1"):
        collate.collate_text([[4, -1]], length=4, eos_id=None)


def test_pack_by_hand():
    examples = [Example([5], [6]), Example([7, 8], [9]), Example([3], [4])]
    batch = packing.pack(examples, length=4, eos_id=EOS, pad_id=1)
    # sizes 2, 3, 2: the second does not fit behind the first, the third does
    np.testing.assert_array_equal(batch["inputs"], [[5, 6, 3, 4], [7, 8, 9, 1]])
    np.testing.assert_array_equal(batch["targets"], [[6, 2, 4, 2], [8, 9, 2, 1]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 1], [0, 1, 1, 0]])
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 2, 2], [1, 1, 1, 0]])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 0, 1], [0, 1, 2, 0]])
    np.testing.assert_array_equal(batch["members"], [[0, 0, 2, 2], [1, 1, 1, -1]])
    np.testing.assert_array_equal(batch["index"], [0, 1])


@given(examples=examples_strategy, extra=st.integers(0, 20))
def test_a_packed_example_is_the_unpacked_one(examples, extra):
    length = collate.fitting_length(examples) + extra
    packed = packing.pack(examples, length=length, eos_id=EOS)
    alone = collate.collate_qa(examples, length=length, eos_id=EOS)
    for i in range(len(examples)):
        here = packed["members"] == i
        (row,) = set(np.nonzero(here)[0])
        columns = np.nonzero(here[row])[0]
        n = len(columns)
        assert columns.tolist() == list(range(columns[0], columns[0] + n))
        for name in ("inputs", "targets", "weights"):
            np.testing.assert_array_equal(packed[name][here], alone[name][i, :n])
            assert not alone["weights"][i, n:].any()
        assert packed["positions"][here].tolist() == list(range(n))
        assert len(set(packed["segments"][here])) == 1
    for row in range(len(packed["index"])):
        real = packed["segments"][row][packed["segments"][row] > 0]
        starts = np.flatnonzero(np.diff(real, prepend=0))
        assert real[starts].tolist() == list(range(1, len(starts) + 1))
    padding = packed["segments"] == 0
    np.testing.assert_array_equal(padding, packed["members"] == -1)
    assert not packed["weights"][padding].any()
    assert packed["weights"].sum() == alone["weights"].sum()


@given(sizes=st.lists(st.integers(1, 10), max_size=60))
def test_first_fit_leaves_no_earlier_row_with_room(sizes):
    placed, rows = packing.first_fit(sizes, 10)
    used = [0] * rows
    for n, (row, start) in zip(sizes, placed, strict=True):
        assert used[row] == start and start + n <= 10
        assert all(used[earlier] + n > 10 for earlier in range(row))
        used[row] += n
    assert all(used)


def test_pairs_share_prompt_rows_and_length():
    found = pairs.collate_pairs(
        [pairs.Pair([5, 6], [7], [8, 9]), pairs.Pair([3], [4, 4], [6])], length=4, eos_id=EOS
    )
    assert found.keys() == {"chosen", "rejected"}
    np.testing.assert_array_equal(found["chosen"]["targets"], [[6, 7, 2, 0], [4, 4, 2, 0]])
    np.testing.assert_array_equal(found["rejected"]["targets"], [[6, 8, 9, 2], [6, 2, 0, 0]])
    np.testing.assert_array_equal(found["rejected"]["weights"], [[0, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(found["chosen"]["index"], found["rejected"]["index"])


def test_split_authors_forgets_the_last():
    records = [{"author": i // 2, "n": i} for i in range(10)]
    forget, retain = pairs.split_authors(records, forget=1)
    assert [r["n"] for r in forget] == [8, 9]
    assert [r["n"] for r in retain] == list(range(8))
    forget, retain = pairs.split_authors(records, forget=2, retain=1)
    assert [r["n"] for r in forget] == [6, 7, 8, 9] and [r["n"] for r in retain] == [0, 1]
    for options in ({"forget": 0}, {"forget": 5}, {"forget": 1, "retain": 5}):
        with pytest.raises(ValueError, match="authors, takes 1 to 4"):
            pairs.split_authors(records, **options)
