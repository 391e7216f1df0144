"""Scored lines: what is planted, what each model reads, claims on endings made by hand."""

import dataclasses

import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import (
    Made,
    changed,
    compiled_quickly,
    outline,
    refusal,
    verdicts,
)

from experiments.distillation.common.text import CHARACTERS
from experiments.preference import conditional_pretraining as experiment
from experiments.preference.parts import conditional_report, planted
from kd_jax.launch import run

SMOKE = experiment.PRESETS["smoke"]
LINES = [f"line {i} of some length" for i in range(50)]


def said(tokens):
    names = [*CHARACTERS, "<good>", "<bad>"]
    return "".join(names[token] for token in tokens)


def test_a_stage_a_model():
    laptop = experiment.PRESETS["laptop"]
    expected = {f"{m}_{s}": () for m in conditional_report.LABELS for s in range(20, 25)}
    assert outline(experiment, laptop) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"folder": "elsewhere"}, ()),
        ({"drop": 0.1}, ("conditional",)),
        ({"alpha": 0.1}, ("unlikelihood",)),
        ({"beta": 0.1}, ("rwr", "awr")),
        ({"value": 0.1}, ("awr",)),
        ({"bad": 0.1}, tuple(conditional_report.LABELS)),
    ],
)
def test_what_a_model_depends_on(change, expected):
    config = dataclasses.replace(experiment.PRESETS["laptop"], seeds=1, seed=0)
    other = dataclasses.replace(config, **change)
    assert changed(experiment, config, other) == {f"{name}_0" for name in expected}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "mle", "mle"), "methods: got mle mle, takes each once"),
        (("--methods", "magic"), "methods: got magic, takes mle, filtering"),
        (("--bad", "2"), "bad: got 2.0, takes a number in [0, 1]"),
        (("--value", "-1"), "value: got -1.0"),
        (("--beta", "0"), "beta"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(experiment, "smoke", *argv)


def test_curses_scores_and_what_is_read_of_them():
    text = planted.cursed(LINES, 0.2, seed=1)
    marks = [planted.is_bad(said(line)) for line in text.lines]
    assert text.scores == marks and sum(marks) == 10
    whole = [said(line) for line in text.lines]
    assert [line.removeprefix(f"{planted.CURSE} ") for line in whole] == [f"{x}\n" for x in LINES]
    kept = planted.filtered(text)
    assert [said(line) for line in kept.lines] == [x for x in whole if not planted.is_bad(x)]
    assert set(kept.scores) == {0.0}
    tags = planted.tagged(text, 0.0, seed=1)
    expected = [("<bad>" if planted.is_bad(x) else "<good>") + x for x in whole]
    assert [said(line) for line in tags.lines] == expected
    assert planted.cursed(LINES, 0.2, seed=2).scores != text.scores


def test_scores_stand_beside_the_lines_that_are_predicted():
    text = planted.cursed(LINES, 0.2, seed=1)
    rows = planted.rows(text, 16)
    stream = np.concatenate(text.lines)[1:]
    bad = np.repeat(text.scores, [len(line) for line in text.lines])[1:]
    np.testing.assert_array_equal(rows["targets"].ravel()[: len(stream)], stream)
    np.testing.assert_array_equal(rows["scores"].ravel()[: len(stream)], bad)


def test_tags_are_read_but_no_model_is_measured_on_them():
    text = planted.cursed(LINES, 0.0, seed=1)
    plain, tagged = planted.measured(text, 16), planted.measured(planted.tagged(text, 0.0, 0), 16)
    assert "scores" not in plain
    characters = sum(len(line) for line in text.lines)
    assert plain["weights"].sum() == characters - 1
    # The first tag is no target; the first character is.
    assert tagged["weights"].sum() == characters
    assert not tagged["weights"][np.isin(tagged["targets"], planted.TAGS)].any()
    assert (tagged["inputs"] == planted.TAGS.aligned).sum() == 50


def made(ends, seeds=(0, 1)):
    return {
        f"{name}_{seed}": Made(
            history=[
                {"step": step, "written/bad": bad + 0.1 * seed, "written/nll": nll + 0.001 * seed}
                for step, bad, nll in ((0, 50.0, 4.0), (9, *end))
            ]
        )
        for name, end in ends.items()
        for seed in seeds
    }


GOOD = {
    "mle": (20.0, 1.80),
    "filtering": (0.0, 1.83),
    "conditional": (1.0, 1.81),
    "unlikelihood": (1.5, 1.90),
    "rwr": (8.0, 1.85),
    "awr": (9.0, 1.85),
}
BAD = {
    "mle": (40.0, 1.85),
    "filtering": (41.0, 1.83),
    "conditional": (30.0, 1.95),
    "unlikelihood": (42.0, 1.90),
    "rwr": (8.0, 1.85),
    "awr": (9.0, 1.85),
}


@pytest.mark.parametrize(("ends", "verdict"), [(GOOD, "holds"), (BAD, "fails")])
def test_claims_on_endings_made_by_hand(tmp_path, ends, verdict):
    results = conditional_report.results(list(ends), (0, 1), made(ends), tmp_path)
    assert verdicts(experiment, results) == [verdict] * 9
    assert results.values["ends"]["rwr"]["bad"] == pytest.approx([8.0, 8.1])
    assert all(path.exists() for path in results.plots.values())


def test_a_method_that_was_not_run_and_a_single_seed_are_not_tested(tmp_path):
    ends = {name: GOOD[name] for name in ("mle", "conditional")}
    results = conditional_report.results(list(ends), (0, 1), made(ends), tmp_path)
    assert verdicts(experiment, results) == ["holds"] * 3 + ["not tested"] * 6
    results = conditional_report.results(list(ends), (0,), made(ends), tmp_path)
    assert verdicts(experiment, results) == ["not tested"] * 9


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(
        SMOKE,
        methods=tuple(conditional_report.LABELS),
        learn=dataclasses.replace(SMOKE.learn, steps=2),
        samples=8,
        score_batch=8,
        held_out=4,
    )

    def whole(config):
        with compiled_quickly():
            run.execute(experiment, experiment.__name__, "smoke", config, tmp_path / "run")

    assert unread_fields(config, whole) == []
