"""Attacks on unlearned models: stages, what the attacker is given, rounding, claims."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, help_of, outline, refusal, verdicts

from experiments.unlearning import relearning_robustness
from experiments.unlearning.common import measuring, qa, runs
from experiments.unlearning.parts import relearning_report as report
from kd_jax.evaluation.quantisation import round_to_nearest
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.weights import from_arrays

SMOKE, LAPTOP = (relearning_robustness.PRESETS[name] for name in ("smoke", "laptop"))
LABELS = {
    "finetune": "fine-tuned",
    "graddiff": "GradDiff",
    "npo_rt": "NPO+RT",
    "simnpo": "SimNPO",
    "retrain": "retrained",
}


@pytest.mark.parametrize("preset", relearning_robustness.PRESETS)
def test_stages_of_the_presets(preset):
    """Those of every comparison, and the attacks on each model."""
    config = relearning_robustness.PRESETS[preset]
    found = outline(relearning_robustness, config)
    for seed in config.repetitions:
        for name in (*config.methods, "retrain"):
            assert found[f"{name}_{seed}_score"] == (f"{name}_{seed}",)
            assert found.pop(f"{name}_relearned_{seed}") == (f"{name}_{seed}",)
        for name in ("finetune", *config.methods, "retrain"):
            for bits in config.bits:
                assert found.pop(f"{name}_{bits}bit_{seed}") == (f"{name}_{seed}",)
    assert not [name for name in found if "relearned" in name or "bit" in name]


def test_what_a_stage_depends_on():
    every = set(outline(relearning_robustness, SMOKE))
    relearned = {name for name in every if "_relearned" in name}
    scores = {name for name in every if name.endswith("_score") or "bit" in name}
    unlearned = {name for name in every if name.startswith("npo_rt")}
    for change, expected in (
        ({"relearn": dataclasses.replace(SMOKE.relearn, rate=1e-4)}, relearned),
        ({"known": 0.25}, relearned),
        ({"beta": 0.2}, unlearned),
        ({"wrong_answers": 1}, scores),
        ({"microbatches": 2}, set()),
    ):
        other = dataclasses.replace(SMOKE, **change)
        assert changed(relearning_robustness, SMOKE, other) == expected, change


def built(name):
    """A stage of the smoke run, from models that are only shapes."""
    language = runs.language(SMOKE, 0)
    shapes = jax.eval_shape(language.model.init, jax.random.key(0))
    found = {n: Artefact(n, "", None, shapes) for n in outline(relearning_robustness, SMOKE)}
    stages = {stage.name: stage for stage in relearning_robustness.stages(SMOKE)}
    return stages[name].build(found), language


def test_the_attacker_trains_on_what_it_has_and_nothing_else():
    training, language = built("npo_rt_relearned_0")
    batches = [training.batches(step, slice(0, 16)) for step in range(5)]
    forget = qa.load(SMOKE.data).forget
    has = SMOKE.attackers(0)
    assert len(has) == len(set(has)) == 20 and set(has) < set(range(40))
    rows = qa.answer_rows(language.tokenizer(), forget, SMOKE.data.length)["inputs"]
    seen = {row.tobytes() for batch in batches for row in batch["inputs"]}
    assert seen == {rows[i].tobytes() for i in has}
    assert list(SMOKE.attackers(1)) != list(has)  # the split is part of what seeds vary


def test_rounding_is_measured_of_rounded_weights(monkeypatch):
    compute, language = built("npo_rt_4bit_0")
    draw = np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(language.model.init, jax.random.key(0))
    weights = jax.tree.map(lambda x: draw(x.shape).astype(np.float32), shapes)
    monkeypatch.setattr(measuring, "figures", lambda config, language, weights, mesh: weights)
    stages = {stage.name: stage for stage in relearning_robustness.stages(SMOKE)}
    found = {"npo_rt_0": types.SimpleNamespace(weights=lambda: from_arrays(weights))}
    _, measured = stages["npo_rt_4bit_0"].build(found).run()
    expected = jax.jit(lambda tree: round_to_nearest(tree, bits=4))(weights)
    jax.tree.map(np.testing.assert_array_equal, measured, expected)
    assert np.abs(measured["embed"]["embedding"] - weights["embed"]["embedding"]).max() > 0
    programs = compute.plan(make_mesh(SMOKE.mesh))
    assert "rounding" in programs and len(programs) > 1


def test_bad_configs_are_refused_in_one_line():
    for argv, said in (
        (("--bits", "1"), "bits: got 1, takes 2 to 16"),
        (("--bits", "4", "4"), "bits: got 4 4, takes each once"),
        (("--known", "1.0"), "known: got 1.0, takes a share that leaves some of the 40 answers"),
        (("--known", "0.0"), "known: got 0.0"),
        (("--microbatches", "4", "--relearn.batch-size", "10"), "takes divisors of 10"),
        (("--methods", "ga", "ga"), "methods: got ga ga, takes each once"),
    ):
        assert said in refusal(relearning_robustness, "smoke", *argv)


def test_help_says_what_the_fields_are(capsys):
    said = help_of(relearning_robustness, "laptop", capsys)
    assert "--known" in said and "held out" in said


# What the report makes of numbers made by hand: 4 forgotten answers, 2 seeds, 2 of them known.

ATTACKERS = {0: np.array([0, 1]), 1: np.array([2, 3])}


def made(ends, rises, jitter=0.01):
    """ends: {model: held-out probability after relearning, from 0.1}; rises: {bits: {model: ...}}
    of the probability of forgotten answers, from 0.1."""
    found = {}
    for seed, known in ATTACKERS.items():
        move = jitter * seed
        for name in LABELS:
            values = {"forget_probability": 0.1, "retain_probability": 0.7}
            found[f"{name}_{seed}_score"] = Made(values)
            for bits in (8, 4):
                rise = rises[bits].get(name, 0.0)
                more = {"forget_probability": 0.1 + rise + move, "retain_probability": 0.6}
                found[f"{name}_{bits}bit_{seed}"] = Made(more)
            start, end = np.full(4, 0.1), np.full(4, ends.get(name, 0.1) + move)
            end[known] = 0.95
            rows = {"0/answers/forget_loss": -np.log(start), "9/answers/forget_loss": -np.log(end)}
            history = [{"step": 0}, {"step": 9}]
            found[f"{name}_relearned_{seed}"] = Made({}, rows, history)
    return found


@pytest.mark.parametrize(
    ("ends", "rises", "expected"),
    [
        (
            {"graddiff": 0.6, "npo_rt": 0.8, "simnpo": 0.3, "retrain": 0.2},
            {8: {}, 4: {"graddiff": 0.2, "npo_rt": 0.3}},
            ["holds"] * 6,
        ),
        (
            {"graddiff": 0.2, "npo_rt": 0.2, "simnpo": 0.5, "retrain": 0.3},
            {8: {"npo_rt": 0.2}, 4: {"graddiff": -0.08, "npo_rt": -0.08}},
            ["fails"] * 6,
        ),
    ],
)
def test_claims_on_attacks_made_by_hand(tmp_path, ends, rises, expected):
    # Seeds that differ by little, and not at all where two models are compared.
    found = report.results(LABELS, ATTACKERS, (8, 4), made(ends, rises, 0.001), tmp_path)
    assert verdicts(relearning_robustness, found) == expected
    effects = found.values["effects"]
    more = ends["npo_rt"] - ends["retrain"]
    assert effects["npo_rt_relearned"]["estimate"] == pytest.approx(more)
    assert effects["npo_rt_4bit_rise"]["estimate"] == pytest.approx(rises[4]["npo_rt"] + 0.0005)
    assert all(path.exists() for path in found.plots.values())
    (table,) = found.tables
    rows = {row["model"]: row for row in table.rows}
    assert rows["fine-tuned"]["held out"] is None
    assert rows["NPO+RT"]["attacker's, relearned"] == pytest.approx(0.95)
    # The known answers are not among the held-out ones, whichever they are.
    held = rows["NPO+RT"]["held out, relearned"]
    assert held.estimate == pytest.approx(ends["npo_rt"] + 0.0005)
    assert rows["SimNPO"]["retain, 4bit"] == pytest.approx(0.6)


def test_attacks_that_differ_between_seeds_decide_nothing(tmp_path):
    found = made({"graddiff": 0.6}, {8: {}, 4: {}}, jitter=0.0)
    wide = made({}, {8: {}, 4: {}}, jitter=0.7)
    apart = {name: (wide if name.endswith("_1") else found)[name] for name in found}
    apart["retrain_relearned_1"] = found["retrain_relearned_1"]
    apart["simnpo_relearned_0"] = made({"simnpo": 0.6}, {8: {}, 4: {}})["simnpo_relearned_0"]
    apart["simnpo_relearned_1"] = found["simnpo_relearned_1"]
    results = report.results(LABELS, ATTACKERS, (8, 4), apart, tmp_path)
    assert verdicts(relearning_robustness, results) == ["inconclusive"] * 6


def test_one_seed_and_missing_methods_are_not_tested(tmp_path):
    found = made({}, {8: {}, 4: {}})
    one = report.results(LABELS, {0: ATTACKERS[0]}, (8, 4), found, tmp_path)
    assert verdicts(relearning_robustness, one) == ["not tested"] * 6
    some = {name: label for name, label in LABELS.items() if name != "graddiff"}
    two = report.results(some, ATTACKERS, (4,), found, tmp_path)
    tested = [verdict != "not tested" for verdict in verdicts(relearning_robustness, two)]
    assert tested == [False, True, True, False, True, False]


def test_own_fields_are_read():
    def go(config):
        language = runs.language(config, 0)
        shapes = jax.eval_shape(language.model.init, jax.random.key(0))
        stages = relearning_robustness.stages(config)
        found = {stage.name: Artefact(stage.name, "", None, shapes) for stage in stages}
        for stage in stages:
            if "_relearned_" in stage.name:
                stage.build(found)

    unread = unread_fields(dataclasses.replace(SMOKE, methods=("simnpo",)), go)
    own = {
        "methods",
        "simnpo_rate",
        "known",
        "bits",
        "relearn.rate",
        "relearn.epochs",
        "relearn.batch_size",
    }
    assert not own & set(unread)
