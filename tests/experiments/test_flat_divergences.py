"""FLAT at equal forgetting: stages, what they depend on, claims on trainings made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.unlearning import flat_divergences
from experiments.unlearning.flat_divergences import METHODS
from experiments.unlearning.parts import flat_report

SMOKE = flat_divergences.PRESETS["smoke"]
LABELS = {name: method.label for name, method in METHODS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("preset", flat_divergences.PRESETS)
def test_stages_of_the_presets(preset):
    config, expected = flat_divergences.PRESETS[preset], {}
    for seed in config.repetitions:
        start = f"finetune_{seed}"
        expected |= {start: (), f"{start}_score": (start,), f"reference_{seed}": (start,)}
        for method in config.methods:
            name = f"{method}_{seed}"
            expected |= {name: (start, f"reference_{seed}"), f"{name}_score": (name,)}
        name = f"retrain_{seed}"
        expected |= {name: (), f"{name}_score": (name,)}
    assert outline(flat_divergences, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(flat_divergences, SMOKE))
    methods = {f"{m}_0{end}" for m in SMOKE.methods for end in ("", "_score")}
    for change, expected in (
        ({"drops": (0.3,)}, set()),  # read from what was measured
        ({"unlearn": dataclasses.replace(SMOKE.unlearn, rate=1e-4)}, methods),
        ({"finetune": dataclasses.replace(SMOKE.finetune, rate=1e-4)}, every),
    ):
        found = changed(flat_divergences, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


def test_no_method_sees_what_is_to_be_kept():
    assert {name for name, method in METHODS.items() if "retain" in method.parts} == set()
    assert all(METHODS[n].parts == ("forget", "refusal") for n in flat_report.FLAT)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--drops", "0.5", "1"), "drops: got 0.5 1.0, takes numbers between 0 and 1"),
        (("--methods", "ga", "ga"), "methods: got ga ga, takes each once"),
        (("--methods", "npo_rt"), "npo_rt"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(flat_divergences, "smoke", *argv)


def training(forget, retain):
    """Measured at steps 0, 10, 20, ..."""
    history = [
        {"step": 10 * i, "answers/forget_probability": f, "answers/retain_probability": r}
        for i, (f, r) in enumerate(zip(forget, retain, strict=True))
    ]
    return Made(history=history)


def test_where_a_level_is_first_crossed():
    made = training((0.8, 0.6, 0.2, 0.5, 0.1), (0.9, 0.9, 0.7, 0.8, 0.1))
    # 0.4 lies halfway between the second and the third measurement.
    step, kept = flat_report.crossing(made, 0.5)
    assert step == pytest.approx(15) and kept == pytest.approx(0.8 / 0.9)
    # Exactly at a measurement; and the first time, although it comes back.
    assert flat_report.crossing(made, 0.25) == pytest.approx((10.0, 1.0))
    assert flat_report.crossing(made, 0.75) == pytest.approx((20.0, 0.7 / 0.9))
    assert flat_report.crossing(made, 0.9) is None


def artefacts(kept, names):
    """Two repetitions in which a method has forgotten half at step 10, and kept so much; None is
    one that forgets nothing."""
    found = {}
    for seed in (0, 1):
        for name in ("finetune", *names, "retrain"):
            found[f"{name}_{seed}_score"] = Made(
                {"forget_probability": 0.2, "retain_probability": 0.4 + 0.01 * seed},
                {"forget_loss": np.full(2, 1.6), "retain_loss": np.full(2, 0.9)},
            )
        for name in names:
            share = kept[name]
            made = (
                training((0.8, 0.8), (0.9, 0.9))
                if share is None
                else training((0.8, 0.4, 0.1), (0.9, 0.9 * (share + 0.002 * seed), 0.1))
            )
            found[f"{name}_{seed}"] = made
    return found


ORDER = ("flat_tv", "flat_js", "flat_pearson", "flat_kl", "ga", "npo")
# The claims: total variation against GA and NPO, the worst of the four against GA and NPO.
CASES = [
    ((0.9, 0.8, 0.8, 0.8, 0.5, 0.6), ["holds"] * 4),
    ((0.55, 0.4, 0.8, 0.8, 0.5, 0.6), ["holds", "fails", "fails", "fails"]),
    ((0.9, 0.8, 0.8, None, 0.5, None), ["holds"] + ["not tested"] * 3),
]


@pytest.mark.parametrize(("kept", "expected"), CASES)
def test_claims_on_trainings_made_by_hand(tmp_path, kept, expected):
    kept = dict(zip(ORDER, kept, strict=True))
    labels = {name: LABELS[name] for name in kept}
    results = flat_report.results(labels, (0.5, 0.25), range(2), artefacts(kept, labels), tmp_path)
    assert verdicts(flat_divergences, results) == expected
    assert verdicts(flat_divergences, results, "smoke") == ["not tested"] * 4
    tv = kept["flat_tv"]
    assert results.values["kept"]["flat_tv"][0] == pytest.approx([tv, tv + 0.002])
    assert results.values["steps"]["flat_tv"][0] == [10.0, 10.0]
    table = {row["method"]: row for row in results.tables[0].rows}
    assert table[labels["flat_tv"]]["kept at -50%"].estimate == pytest.approx(tv + 0.001)
    for name, share in kept.items():
        assert ("kept at -50%" in table[labels[name]]) == (share is not None)
    assert all(path.exists() for path in results.plots.values())


def test_a_claim_about_a_method_that_was_not_run_is_not_tested_and_seeds_may_disagree(tmp_path):
    names = {name: LABELS[name] for name in ("flat_tv", "ga")}
    found = artefacts({"flat_tv": 0.6, "ga": 0.5}, names)
    found["ga_1"] = training((0.8, 0.4, 0.1), (0.9, 0.9 * 0.7, 0.1))
    results = flat_report.results(names, (0.5,), range(2), found, tmp_path)
    assert verdicts(flat_divergences, results) == ["inconclusive"] + ["not tested"] * 3
