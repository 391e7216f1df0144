"""Against the rouge_score package's own numbers (tests/goldens/rouge.json says which)."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.evaluation.porter import stem
from kd_jax.evaluation.rouge import (
    common_subsequence,
    rouge1_recall,
    rouge_l_f,
    rouge_l_recall,
    stems,
    tokens,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "rouge.json").read_text())


@pytest.mark.parametrize(("word", "expected"), GOLDEN["stems"].items())
def test_stems(word, expected):
    assert stem(word) == expected


@pytest.mark.parametrize("pair", GOLDEN["pairs"], ids=lambda p: p["generated"][:20])
def test_published_package_is_reproduced(pair):
    texts = pair["generated"], pair["reference"]
    np.testing.assert_allclose(rouge_l_recall(*texts), pair["recall_stemmed"], rtol=1e-12)
    np.testing.assert_allclose(rouge_l_f(*texts), pair["f_plain"], rtol=1e-12)


def test_goldens_tell_stemming_apart():
    changed = [p for p in GOLDEN["pairs"] if p["recall_stemmed"] != p["recall_plain"]]
    assert len(changed) >= 4


def test_tokens_and_short_words():
    assert tokens("It's a Naïve_2nd try.") == ["it", "s", "a", "na", "ve", "2nd", "try"]
    # Words of up to three letters are not stemmed: "was" would become "wa".
    assert stems("was flies") == ["was", "fli"]


def test_limits():
    answer = "Born in Kuwait City she writes about love and loss"
    words = answer.split()
    assert rouge_l_recall(answer, answer) == 1.0
    assert rouge_l_recall("", answer) == 0.0
    assert rouge_l_recall(answer, "") == 0.0
    for k in (1, 4, 9):
        assert rouge_l_recall(" ".join(words[:k]), answer) == k / 10
    assert rouge_l_recall(answer + " and much more", answer) == 1.0
    assert rouge_l_f(answer + " and much more", answer) == 20 / 23


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_common_subsequence_is_the_dynamic_programme(first, second):
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
            )
    assert common_subsequence(first, second) == table[-1, -1]


@pytest.mark.parametrize(
    ("generated", "reference", "recall"),
    [
        ("the cat", "the cat sat", 2 / 3),
        ("sat cat the", "the cat sat", 1.0),  # order does not count; ROUGE-L has 1/3
        ("the the the", "the cat and the dog", 2 / 5),  # as often as in both
        ("Running runs", "he runs", 1 / 2),  # stems: run, runs; "runs" has four letters
        ("", "the cat", 0.0),
        ("the cat", "", 0.0),
    ],
)
def test_rouge1_recall_by_hand(generated, reference, recall):
    assert rouge1_recall(generated, reference) == pytest.approx(recall)
