"""Two tokenisations of a text, paired by the bytes that have been read."""

import functools

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from kd_jax.data import alignment
from kd_jax.data.alignment import UNKNOWN
from kd_jax.data.collate import Example, collate_qa
from kd_jax.formats.tokenizer import Tokenizer

SOURCE = ["the café in 日本 is the one", "日本の日 the cafés é", "in the the one"] * 3
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
texts = st.text(st.sampled_from("the one café日本の🙂é \n"), max_size=30)


def byte_level(size: int, normalizer=None) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=ALPHABET, show_progress=False, special_tokens=["<s>"]
    )
    backend.train_from_iterator(SOURCE, trainer)
    return Tokenizer(backend, {})


def with_fallback() -> Tokenizer:
    """Characters of the source and their merges; of others the bytes, as <0xE6>."""
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<unk>", *pieces], show_progress=False
    )
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    backend.train_from_iterator(SOURCE, trainer)
    return Tokenizer(backend, {})


MAKERS = {
    "bytes": functools.partial(byte_level, 257),
    "small": functools.partial(byte_level, 290),
    "fallback": with_fallback,
}


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    return MAKERS[name]()


def spelt(name: str, text: str) -> list[int]:
    """Bytes read after each token, from the strings of the tokens alone."""

    def size(token: str) -> int:
        if name != "fallback":
            return len(token)  # a letter a byte
        return 1 if token.startswith("<0x") else len(token.encode())

    return list(np.cumsum([size(t) for t in tokenizer(name).backend.encode(text).tokens]))


@pytest.mark.parametrize("name", MAKERS)
@given(texts)
@example("é日本🙂 x東京")
@example("")
def test_ends_are_where_the_tokens_bytes_end(name, text):
    ids, ends = alignment.encode(tokenizer(name), text)
    assert len(ids) == len(ends)
    assert list(ends) == spelt(name, text)
    assert not len(ends) or ends[-1] == len(text.encode())


def test_tokens_inside_characters_by_hand():
    """日 is E6 97 A5: a token of its own byte, one of two bytes with 本's first; é is C3 A9."""
    tokens = ["a", "æĹ", "¥æ", "ľ", "¬", "Ã©"]
    offsets = [(0, 1), (1, 2), (1, 3), (2, 3), (2, 3), (3, 4)]
    ends = alignment.byte_ends("a日本é", tokens, offsets)
    np.testing.assert_array_equal(ends, [1, 3, 5, 6, 7, 9])


def test_tokens_without_width_end_where_they_stand():
    """As special tokens, which the library puts at (0, 0), at the end of a text too."""
    tokens, offsets = ["<s>", "é", "a", "</s>"], [(0, 0), (0, 1), (1, 2), (0, 0)]
    np.testing.assert_array_equal(alignment.byte_ends("éa", tokens, offsets), [0, 2, 3, 3])


def test_what_a_normaliser_changed_is_unknown():
    """NFC makes one character of e and its accent, and the library says that it is the e alone:
    whether one byte of the text has been read or three is not to be told."""
    text = "e\u0301a e\u0301"
    found = byte_level(257, normalizers.NFC()).backend.encode(text)
    ends = alignment.byte_ends(text, found.tokens, found.offsets)
    np.testing.assert_array_equal(ends, [UNKNOWN, UNKNOWN, 4, 5, UNKNOWN, UNKNOWN])


def test_one_character_as_several_is_unknown_inside():
    """NFKC spells the ligature, three bytes, as f and i: between them none can be named."""
    text = "a\ufb01"
    found = byte_level(257, normalizers.NFKC()).backend.encode(text)
    assert found.tokens == ["a", "f", "i"]
    ends = alignment.byte_ends(text, found.tokens, found.offsets)
    np.testing.assert_array_equal(ends, [1, UNKNOWN, 4])


def test_spaces_in_no_token_are_read_with_the_next():
    ends = alignment.byte_ends("é \n日", ["é", "日"], [(0, 1), (3, 4)])
    np.testing.assert_array_equal(ends, [2, 7])


def test_bytes_are_counted_from_the_answer():
    read = alignment.bytes_read(3, np.array([2, 5]))
    np.testing.assert_array_equal(read, [UNKNOWN, UNKNOWN, 0, 2, 5])
    with pytest.raises(ValueError, match="prompt: got 0 tokens, takes at least 1"):
        alignment.bytes_read(0, np.array([2]))


def rows(name: str, answers: list[str], *, prompt: int, length: int, eos_id: int | None = 0):
    """(a text batch, the bytes read at each position) of answers after a prompt of some tokens."""
    found = [alignment.encode(tokenizer(name), answer) for answer in answers]
    examples = [Example([1] * prompt, ids) for ids, _ in found]
    batch = collate_qa(examples, length=length, eos_id=eos_id)
    return batch, [alignment.bytes_read(prompt, ends) for _, ends in found]


def paired(one, two, size=None):
    (batch, read), (other, others) = one, two
    return alignment.pairs_by_bytes(read, others, batch["weights"], other["weights"], size=size)


@given(texts.filter(bool), st.sampled_from(["bytes", "fallback"]))
@example("é日本🙂 x東京", "fallback")
def test_both_have_read_the_same_bytes(text, name):
    """All such positions and no others, in order; and both predict something."""
    one, two = rows("small", [text], prompt=2, length=150), rows(name, [text], prompt=1, length=150)
    pairs = paired(one, two)
    n = int(pairs["weights"].sum())
    i, j = pairs["student"][0], pairs["teacher"][0]
    ours, theirs = [0, *spelt("small", text)], [0, *spelt(name, text)]
    expected = sorted(set(ours) & set(theirs))
    assert [ours[k - 1] for k in i[:n]] == [theirs[k] for k in j[:n]] == expected
    assert np.all(one[0]["weights"][0][i[:n]] == 1) and np.all(two[0]["weights"][0][j[:n]] == 1)
    assert not i[n:].any() and not j[n:].any() and not pairs["weights"][0, n:].any()


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_tokeniser_pairs_every_position_with_itself(name):
    answers = ["the café in 日本", "🙂é東 x", "a"]
    one = rows(name, answers, prompt=2, length=60)
    pairs, weights = paired(one, one), one[0]["weights"]
    np.testing.assert_array_equal(pairs["student"], pairs["teacher"])
    for places, own, counted in zip(pairs["student"], weights, pairs["weights"], strict=True):
        np.testing.assert_array_equal(places[counted > 0], np.flatnonzero(own))


@pytest.mark.parametrize("size", [1, 4, 12, None])
def test_a_fixed_number_of_pairs(size):
    answers = ["the café", "é"]
    one, two = (
        rows("small", answers, prompt=1, length=12),
        rows("bytes", answers, prompt=1, length=20),
    )
    pairs, whole = paired(one, two, size), paired(one, two, 12)
    size = size or 12  # the smaller length
    assert {name: (x.shape, x.dtype) for name, x in pairs.items()} == {
        "student": ((2, size), np.int32),
        "teacher": ((2, size), np.int32),
        "weights": ((2, size), np.float32),
    }
    for name in pairs:
        np.testing.assert_array_equal(pairs[name], whole[name][:, :size])


def test_what_is_cut_off_or_not_learnt_is_in_no_pair():
    """T = 3 holds 2 tokens of the answer; without an EOS the last token predicts nothing."""
    one, two = (
        rows("bytes", ["abcd"], prompt=1, length=3),
        rows("bytes", ["abcd"], prompt=1, length=9),
    )
    assert paired(one, two)["weights"].sum() == 3  # after nothing, a and ab
    ended = rows("bytes", ["abcd"], prompt=1, length=9, eos_id=None)
    assert paired(two, two)["weights"].sum() == 5
    assert paired(ended, two)["weights"].sum() == paired(two, ended)["weights"].sum() == 4


def test_of_tokens_without_width_the_last_has_read_all():
    read = [np.array([UNKNOWN, 0, 0, 3, 3])], [np.array([0, 3])]
    pairs = alignment.pairs_by_bytes(*read, np.ones((1, 5)), np.ones((1, 2)))
    np.testing.assert_array_equal(pairs["student"], [[2, 4]])
    np.testing.assert_array_equal(pairs["teacher"], [[0, 1]])


def test_pairs_in_order_by_hand():
    ours, theirs = (
        np.array([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]),
        np.array([[1, 1, 0, 0], [0, 0, 1, 1]]),
    )
    pairs = alignment.pairs_in_order(ours, theirs)
    np.testing.assert_array_equal(pairs["student"], [[2, 3, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(pairs["teacher"], [[0, 1, 0, 0], [2, 0, 0, 0]])
    np.testing.assert_array_equal(pairs["weights"], [[1, 1, 0, 0], [1, 0, 0, 0]])


def test_shared_tokens_are_the_same_strings():
    one, two = tokenizer("small"), tokenizer("bytes")
    ours, theirs = alignment.shared_tokens(one, two)
    assert [one.backend.id_to_token(i) for i in ours] == [
        two.backend.id_to_token(i) for i in theirs
    ]
    assert len(ours) == 257 and list(ours) == sorted(ours)


def test_refusals():
    read = [np.array([0, 1])]
    with pytest.raises(ValueError, match="got 1, 1, 2, 1 rows, takes as many everywhere"):
        alignment.pairs_by_bytes(read, read, np.ones((2, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="got 1, 2 rows, takes as many everywhere"):
        alignment.pairs_in_order(np.ones((1, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="size: got 0, takes at least 1"):
        alignment.pairs_by_bytes(read, read, np.ones((1, 2)), np.ones((1, 2)), size=0)
