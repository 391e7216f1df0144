"""Models of a shared suffix: stages, data, claims on endings made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.preference import gradient_entanglement
from experiments.preference.parts import entangled_report, sentiments

SMOKE = gradient_entanglement.PRESETS["smoke"]


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_a_stage_a_suffix_and_seed(preset):
    config = gradient_entanglement.PRESETS[preset]
    expected = {f"suffix_{n}_{seed}": () for n in (0, 5, 15) for seed in config.repetitions}
    assert outline(gradient_entanglement, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(gradient_entanglement, SMOKE))
    for name in ("text", "width", "pairs", "batch", "steps", "rate", "beta", "small", "probes"):
        config = dataclasses.replace(SMOKE, **{name: 2 * getattr(SMOKE, name)})
        assert changed(gradient_entanglement, SMOKE, config) == every, name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--suffixes", "0", "5"), "suffixes: got 0 5, takes three numbers that rise"),
        (("--suffixes", "5", "0", "9"), "suffixes: got 5 0 9"),
        (("--rate", "0"), "rate"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(gradient_entanglement, "smoke", *argv)


def test_completions_differ_in_the_label_alone():
    pairs = sentiments.draw(200, sentiments.Draw(text=6, suffix=3), seed=1)
    words = list(dict.fromkeys(sentiments.WORDS))
    labels = set()
    for pair in pairs:
        prompt = [words[i] for i in pair.prompt]
        assert len(prompt) == 8 and prompt[-2:] == ["sentiment", ":"]
        assert {words[side[0]] for side in (pair.chosen, pair.rejected)} == {"positive", "negative"}
        assert pair.chosen[1:] == pair.rejected[1:] and len(pair.chosen) == 4
        assert {words[i] for i in pair.chosen[1:]} <= set(sentiments.SUFFIX)
        labels.add(words[pair.chosen[0]])
    assert labels == {"positive", "negative"}
    assert len({tuple(pair.chosen[1:]) for pair in pairs}) > 100


def ending(suffix, seed, *, entangled):
    sign = 1 if entangled else -1
    values = dict.fromkeys(entangled_report.COLUMNS, 0.0) | {
        "cosine": sign * (0.01 * suffix - 0.05) + 0.001 * seed,
        "chosen_change": sign * (0.5 - 0.1 * suffix) + 0.001 * seed,
        "prediction_error": 0.02 if entangled else 0.2,
    }
    curves = {f"{side}_curve": np.linspace(0, seed, 30) for side in ("chosen", "rejected")}
    steps = {name: np.arange(8.0).reshape(2, 4) for name in ("predicted", "measured")}
    return Made(values=values, rows=curves | steps)


@pytest.mark.parametrize(("entangled", "expected"), [(True, "holds"), (False, "fails")])
def test_claims_on_endings_made_by_hand(tmp_path, entangled, expected):
    config = dataclasses.replace(gradient_entanglement.PRESETS["laptop"], seed=0, seeds=3)
    made = {
        f"suffix_{n}_{seed}": ending(n, seed, entangled=entangled)
        for n in config.suffixes
        for seed in config.repetitions
    }
    results = gradient_entanglement.report(config, made, tmp_path)
    assert verdicts(gradient_entanglement, results) == [expected] * 7
    assert all(path.exists() for path in results.plots.values())
    assert [row["shared words"] for row in results.tables[0].rows] == [0, 5, 15]


def test_a_single_seed_is_not_tested(tmp_path):
    config = dataclasses.replace(SMOKE, seeds=1)
    made = {f"suffix_{n}_0": ending(n, 0, entangled=True) for n in config.suffixes}
    results = gradient_entanglement.report(config, made, tmp_path)
    assert verdicts(gradient_entanglement, results) == ["not tested"] * 7
