"""Chains of arithmetic modulo a prime, with solutions that take a shortcut and end right.

A problem is a number and S operations; its solution says the number after each. Some solutions
leave out multiplications: where one is due they repeat the number before, and the addition after
it does both at once. The answer is right all the same, and the step before it wrong.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Task(NamedTuple):
    """modulus: m. factors: multiplications are by 2 to factors + 1. steps: S, from 3. shortcut: how
    often a demonstration leaves out a multiplication.

    Tokens: numbers 0 to m - 1; + 1 to + m - 1; the multiplications; "="; the end.
    """

    modulus: int
    factors: int
    steps: int
    shortcut: float

    @property
    def equals(self) -> int:
        return 2 * self.modulus - 1 + self.factors

    @property
    def end(self) -> int:
        return self.equals + 1

    @property
    def vocabulary(self) -> int:
        return self.end + 1


class Problems(NamedTuple):
    """prompts i32 [N, S + 2]: number, operations, "=". numbers i32 [N, S]: what is right after each
    operation. multiplies bool [N, S]."""

    prompts: np.ndarray
    numbers: np.ndarray
    multiplies: np.ndarray

    @property
    def before(self) -> np.ndarray:
        """i32 [N, S]: the right number before each operation."""
        return np.concatenate([self.prompts[:, :1], self.numbers[:, :-1]], 1)


def drawn(task: Task, count: int, seed: Sequence[int], *, runs: bool) -> Problems:
    """Random problems. Multiplications stand alone; or, with `runs`, two or three in a row.

    The last operation is an addition, so that a shortcut can be made up for.
    """
    rng = np.random.default_rng(seed)
    kinds = np.array([places for places in _places(task.steps) if _is_run(places) == runs])
    multiplies = kinds[rng.integers(len(kinds), size=count)]
    adds = rng.integers(1, task.modulus, multiplies.shape)
    factors = rng.integers(2, task.factors + 2, multiplies.shape)
    number = first = rng.integers(task.modulus, size=count)
    numbers = []
    for i in range(task.steps):
        times, plus = number * factors[:, i], number + adds[:, i]
        number = np.where(multiplies[:, i], times, plus) % task.modulus
        numbers.append(number)
    operations = np.where(multiplies, 2 * task.modulus - 1 + factors - 2, task.modulus - 1 + adds)
    prompts = np.column_stack([first, operations, np.full(count, task.equals)])
    return Problems(prompts.astype(np.int32), np.stack(numbers, 1).astype(np.int32), multiplies)


def demonstrations(task: Task, problems: Problems, seed: Sequence[int]) -> np.ndarray:
    """i32 [N, S]: solutions that repeat the number before some of the multiplications."""
    lazy = np.random.default_rng(seed).random(problems.numbers.shape) < task.shortcut
    return np.where(lazy & problems.multiplies, problems.before, problems.numbers)


def right(numbers: np.ndarray, text: Sequence[int] | np.ndarray) -> bool:
    """Whether a response of S numbers ends with the answer: all that the verifier looks at."""
    return len(text) == len(numbers) and bool(text[-1] == numbers[-1])


def shortcuts(problems: Problems, texts: Sequence[Sequence[int]]) -> float:
    """How often a multiplication that changes a number is left out, of those in texts of S steps.

    Left out: the number before it, as the text has it, is repeated.
    """
    size = problems.numbers.shape[1]
    whole = [i for i, text in enumerate(texts) if len(text) == size]
    if not whole:
        return 0.0
    said = np.array([texts[i] for i in whole])
    before = np.concatenate([problems.prompts[whole, :1], said[:, :-1]], 1)
    due = problems.multiplies[whole] & (before != 0)
    return float((said == before)[due].mean()) if due.any() else 0.0


def _places(steps: int) -> list[tuple[bool, ...]]:
    """All ways to have a multiplication among the operations, but not at the end."""
    ways = itertools.product((False, True), repeat=steps - 1)
    return [(*way, False) for way in ways if 0 < sum(way) <= 3 and (not _mixed(way))]


def _mixed(way: Sequence[bool]) -> bool:
    """Neither all alone nor one run."""
    neighbours = sum(a and b for a, b in itertools.pairwise(way))
    return neighbours not in (0, sum(way) - 1)


def _is_run(places: Sequence[bool]) -> bool:
    return any(a and b for a, b in itertools.pairwise(places))
