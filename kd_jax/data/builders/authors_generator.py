"""The generator of fictitious authors: TOFU's shape at any size, from a seed and our own words.

Every author has a name of their own and one value for each of 20 attributes, drawn uniformly and
independently: nothing but the records tells a model what is true of whom. Author i is a function of
(seed, i) alone, so that a larger data set begins with the smaller one.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data.builders import authors_words as words

PERTURBED = 5

Draw = Callable[[], int]  # the next of an endless series of uniform 64-bit integers


class Attribute(NamedTuple):
    """One question about an author: {name} is the author, {value} the attribute."""

    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    value: Callable[[Draw], str]


def generate(
    authors: int, seed: int = 0, *, questions_per_author: int = 20
) -> list[dict[str, Any]]:
    """authors * questions_per_author records, author by author.

    Fields as TOFU's perturbed splits: question, answer, paraphrased_question, paraphrased_answer,
    perturbed_answer (5 distinct wrong answers in the paraphrase's words), author (from 0).
    authors: 1 to 73728 (from 3073 on they have middle names). seed: 0 to 2**64 - 1.
    questions_per_author: 1 to 20. The same on every machine and numpy version.
    """
    if not 1 <= authors <= max_authors():
        raise ValueError(f"authors: got {authors}, takes 1 to {max_authors()}")
    if not 1 <= questions_per_author <= len(ATTRIBUTES):
        raise ValueError(
            f"questions_per_author: got {questions_per_author}, takes 1 to {len(ATTRIBUTES)}"
        )
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, takes 0 to 2**64 - 1")
    names = _names(seed, authors)
    return [
        {**record, "author": i}
        for i, name in enumerate(names)
        for record in _author(name, _stream(seed, i + 1), questions_per_author)
    ]


def max_authors() -> int:
    """The number of distinct full names."""
    return len(words.FIRST_NAMES) * len(words.MIDDLE_NAMES) * len(words.LAST_NAMES)


def _author(name: str, draw: Draw, questions: int) -> list[dict[str, Any]]:
    records = []
    for attribute in ATTRIBUTES[:questions]:
        values: list[str] = []
        while len(values) < 1 + PERTURBED:
            value = attribute.value(draw)
            if value not in values:
                values.append(value)
        records.append(
            {
                "question": attribute.question.format(name=name),
                "answer": attribute.answer.format(name=name, value=values[0]),
                "paraphrased_question": attribute.paraphrased_question.format(name=name),
                "paraphrased_answer": attribute.paraphrased_answer.format(
                    name=name, value=values[0]
                ),
                "perturbed_answer": [
                    attribute.paraphrased_answer.format(name=name, value=value)
                    for value in values[1:]
                ],
            }
        )
    return records


def _names(seed: int, authors: int) -> list[str]:
    parts = [words.FIRST_NAMES, words.LAST_NAMES]
    if authors > len(words.FIRST_NAMES) * len(words.LAST_NAMES):
        parts.insert(1, words.MIDDLE_NAMES)
    full = [" ".join(name) for name in itertools.product(*parts)]
    # Raw bits of a bit generator: the stream that numpy promises never to change.
    keys = _philox(seed, 0).random_raw(len(full))
    return [full[i] for i in np.argsort(keys, kind="stable")[:authors]]


def _stream(seed: int, number: int) -> Draw:
    generator = _philox(seed, number)
    return lambda: int(generator.random_raw())


def _philox(seed: int, number: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, number], np.uint64))


def _one_of(values: list[str], draw: Draw) -> str:
    return values[draw() % len(values)]


def _each(values: list[str]) -> Callable[[Draw], str]:
    return functools.partial(_one_of, values)


def _title(draw: Draw) -> str:
    return f"The {_one_of(words.ADJECTIVES, draw)} {_one_of(words.NOUNS, draw)}"


def _birth_date(draw: Draw) -> str:
    return f"{_one_of(words.MONTHS, draw)} {1 + draw() % 28} {1930 + draw() % 50}"


def _year(draw: Draw) -> str:
    return str(1960 + draw() % 50)


def _person(draw: Draw) -> str:
    return f"{_one_of(words.FIRST_NAMES, draw)} {_one_of(words.LAST_NAMES, draw)}"


ATTRIBUTES = (
    Attribute(
        "Where was {name} born?",
        "{name} was born in {value}.",
        "What is the birthplace of {name}?",
        "The birthplace of {name} is {value}.",
        _each(words.CITIES),
    ),
    Attribute(
        "When was {name} born?",
        "{name} was born on {value}.",
        "What is the birth date of {name}?",
        "The birth date of {name} is {value}.",
        _birth_date,
    ),
    Attribute(
        "What genre does {name} write?",
        "{name} writes {value}.",
        "Which genre is {name} known for?",
        "The genre {name} is known for is {value}.",
        _each(words.GENRES),
    ),
    Attribute(
        "What was the job of the father of {name}?",
        "The father of {name} was a {value}.",
        "How did the father of {name} earn a living?",
        "The job of the father of {name} was {value}.",
        _each(words.JOBS),
    ),
    Attribute(
        "What was the job of the mother of {name}?",
        "The mother of {name} was a {value}.",
        "How did the mother of {name} earn a living?",
        "The job of the mother of {name} was {value}.",
        _each(words.JOBS),
    ),
    Attribute(
        "What is the first book of {name}?",
        "The first book of {name} is {value}.",
        "Which book did {name} write first?",
        "{name} first wrote {value}.",
        _title,
    ),
    Attribute(
        "What is the best known book of {name}?",
        "The best known book of {name} is {value}.",
        "Which book made {name} famous?",
        "{name} became famous with {value}.",
        _title,
    ),
    Attribute(
        "What is the latest book of {name}?",
        "The latest book of {name} is {value}.",
        "Which book did {name} write last?",
        "{name} last wrote {value}.",
        _title,
    ),
    Attribute(
        "Which award did {name} win?",
        "{name} won the {value} Prize.",
        "What prize was given to {name}?",
        "The prize given to {name} was the {value} Prize.",
        _each(words.PRIZES),
    ),
    Attribute(
        "When did {name} win an award?",
        "{name} won an award in {value}.",
        "In which year was a prize given to {name}?",
        "The year of the prize of {name} was {value}.",
        _year,
    ),
    Attribute(
        "Where does {name} live?",
        "{name} lives in {value}.",
        "What is the home of {name}?",
        "The home of {name} is in {value}.",
        _each(words.CITIES),
    ),
    Attribute(
        "Where did {name} study?",
        "{name} studied in {value}.",
        "In which city was {name} a student?",
        "The city where {name} was a student is {value}.",
        _each(words.CITIES),
    ),
    Attribute(
        "Who taught {name} to write?",
        "{name} was taught by {value}.",
        "Who was the teacher of {name}?",
        "The teacher of {name} was {value}.",
        _person,
    ),
    Attribute(
        "Which instrument does {name} play?",
        "{name} plays the {value}.",
        "What is the instrument of {name}?",
        "The instrument of {name} is the {value}.",
        _each(words.INSTRUMENTS),
    ),
    Attribute(
        "Which language did {name} learn?",
        "{name} learned {value}.",
        "What is the second language of {name}?",
        "The second language of {name} is {value}.",
        _each(words.LANGUAGES),
    ),
    Attribute(
        "What is the hobby of {name}?",
        "The hobby of {name} is {value}.",
        "What does {name} enjoy most?",
        "{name} most enjoys {value}.",
        _each(words.HOBBIES),
    ),
    Attribute(
        "What is the main theme of {name}?",
        "The main theme of {name} is {value}.",
        "What are the books of {name} about?",
        "The books of {name} are about {value}.",
        _each(words.THEMES),
    ),
    Attribute(
        "Which animal does {name} keep?",
        "{name} keeps a {value}.",
        "What is the pet of {name}?",
        "The pet of {name} is a {value}.",
        _each(words.ANIMALS),
    ),
    Attribute(
        "What does {name} drink while writing?",
        "{name} drinks {value} while writing.",
        "What is the favourite drink of {name}?",
        "The favourite drink of {name} is {value}.",
        _each(words.DRINKS),
    ),
    Attribute(
        "What is the favourite colour of {name}?",
        "The favourite colour of {name} is {value}.",
        "Which colour does {name} like best?",
        "{name} likes {value} best.",
        _each(words.COLOURS),
    ),
)
