"""Claims of a paper, what a run measured for them, and the verdicts.

A claim's predicate is written before the run; the verdict is one of "holds", "fails",
"inconclusive" (the interval allows both) and "not tested" (preset smoke, or not measured).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.launch.config import plain

VERDICTS = ("holds", "fails", "inconclusive", "not tested")


class Effect(NamedTuple):
    """An estimate with its interval (95 % unless the claim's statement says otherwise)."""

    estimate: float
    low: float
    high: float


class Table(NamedTuple):
    """Rows of one table; columns are the keys, in order of first appearance. An `Effect` is shown
    as estimate [low, high]."""

    title: str
    rows: Sequence[Mapping[str, Any]]


class Results(NamedTuple):
    """What an experiment's `report` hands back.

    values: anything that JSON can hold; claims read their effects from here.
    plots: name -> file, inside the run's folder.
    """

    values: Mapping[str, Any] = {}
    tables: Sequence[Table] = ()
    plots: Mapping[str, str | Path] = {}


class Claim(NamedTuple):
    """One sentence of a paper that a run can contradict.

    source: where the paper says it ("Table 2"). paper_value: the paper's figure, as text.
    effect: Results -> Effect, or None where this preset does not measure it.
    holds: Effect -> True, False, or None for inconclusive; written before the run.
    tried: what was tried since, shown beside a verdict "fails" or "inconclusive".
    """

    statement: str
    source: str
    paper_value: str
    effect: Callable[[Results], Effect | None]
    holds: Callable[[Effect], bool | None]
    tried: str = ""


def above(bound: float) -> Callable[[Effect], bool | None]:
    """Holds where the whole interval is above the bound, fails where none of it is."""
    return lambda e: True if e.low > bound else False if e.high <= bound else None


def below(bound: float) -> Callable[[Effect], bool | None]:
    """Holds where the whole interval is below the bound, fails where none of it is."""
    return lambda e: True if e.high < bound else False if e.low >= bound else None


def within(low: float, high: float) -> Callable[[Effect], bool | None]:
    """Holds where the interval lies in [low, high], fails where it lies outside."""

    def holds(e: Effect) -> bool | None:
        if low <= e.low and e.high <= high:
            return True
        return False if e.high < low or e.low > high else None

    return holds


def judge(claim: Claim, results: Results, preset: str) -> dict[str, Any]:
    """The claim with its effect and verdict, as plain JSON data.

    The effect is worked out in every preset, so that `smoke` runs the code that does it. An
    effect that is not finite decides nothing.
    """
    effect = claim.effect(results)
    if effect is None or preset == "smoke":
        verdict = "not tested"
    elif not all(map(math.isfinite, effect)):
        verdict = "inconclusive"
    else:
        if not effect.low <= effect.estimate <= effect.high:
            raise ValueError(
                f"effect of {claim.statement!r}: got {effect}, takes low <= estimate <= high"
            )
        verdict = {True: "holds", False: "fails", None: "inconclusive"}[claim.holds(effect)]
    return plain(
        {
            "statement": claim.statement,
            "source": claim.source,
            "paper_value": claim.paper_value,
            "effect": None if effect is None else effect._asdict(),
            "verdict": verdict,
            "tried": claim.tried,
        }
    )
