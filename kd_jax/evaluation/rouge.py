"""ROUGE-1 and ROUGE-L as the `rouge_score` package computes them (Lin 2004), on two strings.

Benchmarks differ in what they report, so each has a function of its own here: TOFU takes the recall
with stemming; others take the F-measure without.
"""

import collections
import re
from collections.abc import Sequence

from kd_jax.evaluation.porter import stem


def tokens(text: str) -> list[str]:
    """The runs of ASCII letters and digits of the text in lower case.

    Any other character separates: "naïve" gives "na" and "ve".
    """
    return re.findall("[a-z0-9]+", text.lower())


def stems(text: str) -> list[str]:
    """The tokens of the text, those of more than three letters stemmed by Porter's rules."""
    return [stem(token) if len(token) > 3 else token for token in tokens(text)]


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004): the bits of one integer are a row of the dynamic programme, set
    where its value does not rise.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << i
    full = row = (1 << len(first)) - 1
    for token in second:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def rouge_l_recall(generated: str, reference: str) -> float:
    """LCS(stems(reference), stems(generated)) / number of stems of the reference, in [0, 1].

    0 where either text has no tokens. TOFU's figure (arXiv 2401.06121, section 2.2), where the
    reference is the true answer.
    """
    got, wanted = stems(generated), stems(reference)
    return common_subsequence(wanted, got) / len(wanted) if wanted else 0.0


def rouge1_recall(generated: str, reference: str) -> float:
    """Stems that both texts have / number of stems of the reference, in [0, 1].

    A stem counts as often as it is in both. In whatever order, so at least `rouge_l_recall`. 0
    where either text has no tokens. TOFU's logs have it beside ROUGE-L.
    """
    got, wanted = collections.Counter(stems(generated)), collections.Counter(stems(reference))
    return (got & wanted).total() / wanted.total() if wanted else 0.0


def rouge_l_f(generated: str, reference: str) -> float:
    """2 P R / (P + R) of ROUGE-L's precision and recall, without stemming, in [0, 1].

    = 2 LCS / (tokens of the one + tokens of the other). MUSE's figure (arXiv 2407.06460).
    """
    got, wanted = tokens(generated), tokens(reference)
    both = len(got) + len(wanted)
    return 2 * common_subsequence(wanted, got) / both if both else 0.0
