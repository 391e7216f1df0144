"""Claims, verdicts, tables."""

import csv
import io
import json
import math

import pytest

from kd_jax.launch.claims import (
    VERDICTS,
    Claim,
    Effect,
    Results,
    Table,
    above,
    below,
    judge,
    within,
)
from kd_jax.launch.tables import as_csv, as_markdown, as_text, cell


@pytest.mark.parametrize(
    ("predicate", "effect", "expected"),
    [
        (above(0.0), (0.2, 0.1, 0.3), True),
        (above(0.0), (0.1, -0.1, 0.3), None),
        (above(0.0), (-0.2, -0.3, 0.0), False),
        (below(1.0), (0.2, 0.1, 0.3), True),
        (below(0.2), (0.2, 0.1, 0.3), None),
        (below(0.1), (0.2, 0.1, 0.3), False),
        (within(0.0, 1.0), (0.5, 0.0, 1.0), True),
        (within(0.0, 1.0), (0.9, 0.8, 1.1), None),
        (within(0.0, 1.0), (1.2, 1.1, 1.3), False),
        (within(0.0, 1.0), (0.5, -1.0, 2.0), None),
    ],
)
def test_predicates(predicate, effect, expected):
    assert predicate(Effect(*effect)) is expected


POSITIVE = above(0.0)


def claim(effect, holds=POSITIVE):
    return Claim("Student above.", "Table 1", "98.9", effect, holds, "more seeds")


@pytest.mark.parametrize(
    ("low", "high", "preset", "verdict"),
    [
        (0.1, 0.3, "laptop", "holds"),
        (-0.1, 0.3, "laptop", "inconclusive"),
        (0.1, 0.3, "smoke", "not tested"),
        (math.nan, math.nan, "laptop", "inconclusive"),
        (0.1, math.inf, "laptop", "inconclusive"),
    ],
)
def test_verdicts(low, high, preset, verdict):
    results = Results({"gain": 0.2})
    found = judge(claim(lambda r: Effect(r.values["gain"], low, high)), results, preset)
    assert found["verdict"] == verdict
    assert verdict in VERDICTS
    assert found["effect"]["estimate"] == 0.2
    json.dumps(found, allow_nan=False)


def test_a_claim_that_fails_says_what_was_tried():
    found = judge(claim(lambda r: Effect(-0.2, -0.3, -0.1)), Results(), "laptop")
    assert found["verdict"] == "fails"
    assert found["tried"] == "more seeds"


def test_an_effect_that_was_not_measured_is_not_tested():
    found = judge(claim(lambda r: None), Results(), "laptop")
    assert (found["verdict"], found["effect"]) == ("not tested", None)


def test_the_predicate_is_not_asked_at_smoke_but_the_effect_is():
    def never(effect):
        raise AssertionError

    judge(claim(lambda r: Effect(0, 0, 0), never), Results(), "smoke")
    with pytest.raises(KeyError):
        judge(claim(lambda r: r.values["absent"], never), Results(), "smoke")


def test_an_interval_without_its_estimate_is_refused():
    with pytest.raises(ValueError, match="low <= estimate <= high"):
        judge(claim(lambda r: Effect(0.5, 0.6, 0.7)), Results(), "laptop")


TABLE = Table(
    "Accuracy",
    [
        {"method": "kd", "accuracy": Effect(0.98765, 0.97, 0.99), "steps": 100},
        {"method": "plain | hard", "accuracy": 0.9, "note": None},
    ],
)


def test_text_aligns_numbers_to_the_right():
    assert as_text(TABLE).splitlines() == [
        "Accuracy",
        "",
        "method                   accuracy  steps  note",
        "kd            0.9877 [0.97, 0.99]    100     –",
        "plain | hard                  0.9      –     –",
    ]


def test_markdown_escapes_bars_and_fills_gaps():
    lines = as_markdown(TABLE).splitlines()
    assert lines[2] == "| method | accuracy | steps | note |"
    assert lines[-1] == "| plain \\| hard | 0.9 | – | – |"


def test_csv_keeps_full_precision_and_the_interval():
    rows = list(csv.DictReader(io.StringIO(as_csv(TABLE))))
    assert rows[0]["accuracy"] == "0.98765"
    assert rows[0]["accuracy.high"] == "0.99"
    assert rows[1]["accuracy.low"] == ""


def test_cell_of_none_and_integers():
    assert [cell(None), cell(12345678), cell(1234567.0)] == ["–", "12345678", "1.235e+06"]
