"""Questions about authors, or a user's own, as token arrays: what is forgotten and what is kept."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import collate, jsonl, pairs, prepare, refusals, templates
from kd_jax.data.builders.authors_generator import generate
from kd_jax.data.builders.tofu import Tofu
from kd_jax.launch.config import not_identity

QUESTIONS_PER_AUTHOR = 20
PERTURBED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What to forget and what to keep: authors of TOFU, generated authors, or your own files."""

    tofu: bool = False
    """The real TOFU authors instead of generated ones."""
    forget_authors: int = 2
    """The last so many authors are forgotten; TOFU's forget01 is 2 of 200."""
    retain_authors: int = 6
    """The first so many authors are kept."""
    holdout_authors: int = 0
    """So many further authors are never trained on: what membership attacks compare with."""
    forget: str | None = None
    """Your own JSON lines of prompt and answer to forget, in place of authors."""
    retain: str | None = None
    """Your own JSON lines of prompt and answer to keep; goes with --data.forget."""
    length: int = 96
    """Tokens in a row; longer answers lose their end."""
    seed: int = 0
    """Of the generated authors."""
    folder: str | None = not_identity(None)
    """Where the data set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        if (self.forget is None) != (self.retain is None):
            given, other = ("forget", "retain") if self.retain is None else ("retain", "forget")
            raise ValueError(f"data.{given}: goes with data.{other}; give both files or neither")
        for name in ("forget_authors", "retain_authors", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}: got {getattr(self, name)}, takes at least 1")
        if self.holdout_authors < 0:
            raise ValueError(f"data.holdout_authors: got {self.holdout_authors}, takes at least 0")

    @property
    def perturbed(self) -> int:
        """Wrong answers that come with each question; a user's own data have none."""
        return 0 if self.forget else PERTURBED


class Questions(NamedTuple):
    """Records with question, answer, paraphrased_answer and perturbed_answer (a list)."""

    forget: Sequence[Mapping[str, Any]]
    retain: Sequence[Mapping[str, Any]]
    holdout: Sequence[Mapping[str, Any]] = ()


@functools.cache
def load(data: Data) -> Questions:
    """The records, in the order of their files."""
    if data.forget and data.retain:
        own = [
            [{"question": p, "answer": a} for p, a in jsonl.read_prompt_answers(path)]
            for path in (data.forget, data.retain)
        ]
        return Questions(*own)
    n_forget = data.forget_authors * QUESTIONS_PER_AUTHOR
    n_retain = data.retain_authors * QUESTIONS_PER_AUTHOR
    n_holdout = data.holdout_authors * QUESTIONS_PER_AUTHOR
    if not data.tofu:
        records = generate(
            data.forget_authors + data.retain_authors + data.holdout_authors,
            data.seed,
            questions_per_author=QUESTIONS_PER_AUTHOR,
        )
        forget, others = pairs.split_authors(records, forget=data.forget_authors)
        return Questions(forget, others[:n_retain], others[n_retain:])
    splits = prepare.load(Tofu, manual_dir=data.folder)
    # The 400 rows of forget10_perturbed are the last 20 authors, those of retain_perturbed the
    # first 20; answers to keep beyond those come without wrong answers and are only trained on.
    forget = prepare.texts(splits["forget10_perturbed"])
    if n_forget > len(forget):
        raise ValueError(f"data.forget_authors: got {data.forget_authors}, takes 1 to 20 of TOFU")
    kept = prepare.texts(splits["retain_perturbed"])
    full = prepare.texts(splits["full"])
    if n_retain + n_holdout > len(full) - n_forget:
        most = (len(full) - n_forget - n_holdout) // QUESTIONS_PER_AUTHOR
        raise ValueError(f"data.retain_authors: got {data.retain_authors}, takes up to {most}")
    others = kept + full[len(kept) : len(full) - n_forget]
    return Questions(forget[-n_forget:], others[:n_retain], others[n_retain : n_retain + n_holdout])


@functools.cache
def general(data: Data, count: int) -> dict[str, Sequence[Mapping[str, Any]]]:
    """TOFU's questions about real authors and about the world, the first `count` of each: records
    as above, but without paraphrases. None beside other data than TOFU's."""
    if not count or data.forget or not data.tofu:
        return {}
    splits = prepare.load(Tofu, manual_dir=data.folder)
    return {
        name: prepare.texts(splits[f"{name}_perturbed"])[:count]
        for name in ("real_authors", "world_facts")
    }


def rows(
    tokenizer: Any, records: Sequence[Mapping[str, Any]], answers: Sequence[str], length: int
) -> dict[str, np.ndarray]:
    """A text batch of "Question: ... Answer: ..." rows, one for each record and its answer."""
    examples = [
        templates.example(
            tokenizer, *templates.question_answer(record["question"], answer), bos_id=None
        )
        for record, answer in zip(records, answers, strict=True)
    ]
    return collate.collate_qa(
        examples, length=length, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id or 0
    )


def answer_rows(tokenizer: Any, records: Sequence[Mapping[str, Any]], length: int):
    """The rows of the records' own answers: what is trained on."""
    return rows(tokenizer, records, [record["answer"] for record in records], length)


def refusal_rows(
    tokenizer: Any, records: Sequence[Mapping[str, Any]], length: int, seed: int
) -> dict[str, np.ndarray]:
    """The rows of the same questions, each with a refusal in place of its answer."""
    return rows(tokenizer, records, refusals.draw(len(records), seed=seed), length)


def texts(questions: Questions) -> list[str]:
    """All that a tokeniser made for these questions has to spell."""
    found = [f" {sentence}" for sentence in refusals.SENTENCES]
    for record in (*questions.forget, *questions.retain, *questions.holdout):
        answers = [record["answer"], record.get("paraphrased_answer", "")]
        for answer in (*answers, *record.get("perturbed_answer", ())):
            found += templates.question_answer(record["question"], answer)
    return found


def sizes(data: Data) -> tuple[int, int]:
    """(questions to forget, questions to keep), without reading the authors' records."""
    if data.forget:
        questions = load(data)
        return len(questions.forget), len(questions.retain)
    return data.forget_authors * QUESTIONS_PER_AUTHOR, data.retain_authors * QUESTIONS_PER_AUTHOR
