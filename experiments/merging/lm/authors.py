"""Language models fine-tuned on disjoint authors, and what a model knows of each group of them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.unlearning.common import qa, scorers
from kd_jax.evaluation import tofu
from kd_jax.launch.config import check_positive, not_identity
from kd_jax.launch.language import Language
from kd_jax.launch.stages import mesh_of
from kd_jax.objectives.combinators import own_weights

Records = Sequence[Mapping[str, Any]]
HELD_OUT = "held out"  # the group that no model learns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Authors:
    """Fictitious authors of TOFU, or generated ones, in groups of equal size."""

    tofu: bool = False
    """The real TOFU authors instead of generated ones."""
    groups: int = 3
    """Groups that are learned, each by a model of its own."""
    each: int = 1
    """Authors in a group, of 20 questions each; as many are held out."""
    length: int = 64
    """Tokens in a row; longer answers lose their end."""
    folder: str | None = not_identity(None)
    """Where the data set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        check_positive(self, "each", "length")
        if self.groups < 2:
            raise ValueError(f"groups: got {self.groups}, takes at least 2")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the groups that are learned: "A", "B", ..."""
        return tuple(chr(ord("A") + i) for i in range(self.groups))

    @property
    def data(self) -> qa.Data:
        """The first authors are kept and held out; none is to be forgotten."""
        return qa.Data(
            tofu=self.tofu,
            forget_authors=1,
            retain_authors=self.groups * self.each,
            holdout_authors=self.each,
            length=self.length,
            folder=self.folder,
        )

    @property
    def questions(self) -> int:
        """In a group."""
        return self.each * qa.QUESTIONS_PER_AUTHOR


def records(authors: Authors) -> dict[str, Records]:
    """The questions of each group, and of the authors held out."""
    found, size = qa.load(authors.data), authors.questions
    groups = {name: found.retain[i * size :][:size] for i, name in enumerate(authors.names)}
    return groups | {HELD_OUT: found.holdout}


def known(
    authors: Authors, language: Language, weights: Any, *, asked: int, rows: int
) -> dict[str, np.ndarray]:
    """{group: the probability of a token of each answer, [N]}, the geometric mean over its tokens.

    asked: questions of each group, evenly spread over it. rows: in a scoring batch.
    """
    mesh = mesh_of(weights)
    score = scorers.make_scorer(language.model, own_weights, mesh=mesh, batch_size=rows)
    found = score({"model": weights, "aux": {}}, {}, _answers(authors, language.tokenizer, asked))
    return {group: tofu.probability(scorers.loss(x)) for group, x in found.items()}


@functools.cache
def _answers(authors: Authors, tokenizer: Any, asked: int) -> dict[str, Any]:
    def some(group: Records) -> Records:
        places = np.linspace(0, len(group) - 1, min(asked, len(group))).astype(int)
        return [group[i] for i in places]

    return {
        name: qa.answer_rows(tokenizer(), some(group), authors.length)
        for name, group in records(authors).items()
    }
