"""Unlearning: stages, commands, rows, claims, a plan of 7B parameters, one's own data."""

import dataclasses

import jax
import numpy as np
import pytest
from support.experiment_checks import (
    Made,
    changed,
    help_of,
    outline,
    refusal,
    verdicts,
)

from experiments.unlearning import npo_tofu
from experiments.unlearning.common import lm
from experiments.unlearning.common.methods import METHODS as ALL
from experiments.unlearning.parts import tofu_report
from kd_jax.launch import cli, language
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import identity
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import keys, placed

NAME = npo_tofu.__name__
SMOKE, PAPER = npo_tofu.PRESETS["smoke"], npo_tofu.PRESETS["paper"]
METHODS = SMOKE.methods


@pytest.fixture(autouse=True)
def no_files(tmp_path, monkeypatch):
    """Whether the model was fetched on this machine makes no difference."""
    monkeypatch.setattr(language.fetch, "smollm2_path", lambda: tmp_path / "absent.gguf")


@pytest.mark.parametrize("preset", npo_tofu.PRESETS)
def test_stages_of_the_presets(preset):
    """Shapes are enough: neither data nor weights have to be there."""
    config, expected = npo_tofu.PRESETS[preset], {}
    for seed in range(config.seeds):
        start = f"finetune_{seed}"
        expected |= {start: (), f"{start}_score": (start,), f"reference_{seed}": (start,)}
        for method in config.methods:
            name = f"{method}_{seed}"
            expected |= {name: (start, f"reference_{seed}"), f"{name}_score": (name,)}
        name = f"retrain_{seed}"
        expected |= {name: (), f"{name}_score": (name,)}
    assert outline(npo_tofu, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(npo_tofu, SMOKE))
    methods = {name for method in METHODS for name in (f"{method}_0", f"{method}_0_score")}
    learning = dataclasses.replace(SMOKE.unlearn, rate=1e-4)
    for change, expected in (
        ({"beta": 0.2}, methods),
        ({"unlearn": learning}, methods),
        ({"finetune": learning}, every),
        ({"generate": 3}, {name for name in every if name.endswith("_score")}),
        ({"wrong_answers": 1}, {name for name in every if name.endswith("_score")}),
        ({"data": dataclasses.replace(SMOKE.data, folder="elsewhere")}, set()),
        ({"microbatches": 2}, set()),
        ({"log_every": 3}, set()),
    ):
        assert changed(npo_tofu, SMOKE, dataclasses.replace(SMOKE, **change)) == expected, change


def test_methods_are_run_in_groups_and_kept():
    """Fewer methods share what they have in common with more."""
    some = dataclasses.replace(SMOKE, methods=("npo", "simnpo"))
    of = {
        n: keys(npo_tofu.stages(c), NAME, identity(c)) for n, c in (("all", SMOKE), ("some", some))
    }
    common = of["all"].keys() & of["some"].keys()
    assert {"finetune_0", "reference_0", "npo_0", "npo_0_score", "retrain_0"} <= common
    assert all(of["all"][name] == of["some"][name] for name in common)


def test_another_seed_is_another_model():
    other = dataclasses.replace(SMOKE, seed=3)
    names = set(outline(npo_tofu, other))
    assert names == {name.replace("_0", "_3") for name in outline(npo_tofu, SMOKE)}


def test_the_command_line(capsys):
    text = help_of(npo_tofu, "laptop", capsys)
    assert "--data.forget" in text and "NPO's inverse temperature" in text
    argv = ["smoke", "--beta", "0.2", "--unlearn.epochs", "3", "--adapter.rank", "4"]
    assert cli.parse(npo_tofu, NAME, argv).config == dataclasses.replace(
        SMOKE,
        beta=0.2,
        unlearn=dataclasses.replace(SMOKE.unlearn, epochs=3),
        adapter=lm.Adapter(rank=4),
    )


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("beta", "0", "beta: got 0"),
        ("microbatches", "0", "microbatches: got 0"),
        ("microbatches", "3", "microbatches: got 3"),
        ("evaluations", "0", "evaluations: got 0"),
        ("evaluate-retain", "0", "evaluate_retain: got 0"),
        ("score-batch", "0", "score_batch: got 0"),
        ("seeds", "0", "seeds: got 0"),
        ("generate", "-1", "generate: got -1"),
        ("general", "-1", "general: got -1"),
        ("data.holdout-authors", "-1", "data.holdout_authors: got -1"),
        ("wrong-answers", "-1", "wrong_answers: got -1"),
        ("unlearn.rate", "-1", "rate: got -1"),
        ("finetune.warmup", "1", "warmup: got 1"),
        ("adapter.rank", "-1", "adapter.rank: got -1"),
        ("data.length", "0", "data.length: got 0"),
        ("data.forget-authors", "0", "data.forget_authors: got 0"),
        ("data.forget", "mine.jsonl", "data.forget: goes with data.retain"),
        ("data.retain", "mine.jsonl", "data.retain: goes with data.forget"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value, said):
    assert said in refusal(npo_tofu, "smoke", f"--{flag}", value)


def test_a_model_that_is_not_there_is_said_in_one_line():
    for config, how in ((npo_tofu.PRESETS["laptop"], "formats.fetch smollm2"), (PAPER, "--model")):
        training = npo_tofu.stages(config)[0].build({})
        with pytest.raises(UserError, match=f"model: there is no .*{how}"):
            weights = training.frozen or training.weights
            weights.make(weights.abstract)


# Claims.


def made(losses):
    """Score artefacts of two parts whose answers all have about these losses; and trainings."""
    spread = np.linspace(-0.01, 0.01, 8)
    found = {}
    for name in ("finetune", "retrain", *METHODS):
        forget, retain = losses.get(name, (1.0, 1.0))
        rows = {"forget_loss": forget + spread, "retain_loss": retain + spread}
        values = {
            f"{part}_probability": float(np.exp(-rows[f"{part}_loss"]).mean())
            for part in ("forget", "retain")
        }
        rows["forget_truth_ratio"] = np.exp(spread + forget)
        found[f"{name}_0_score"] = Made(values, rows)
        point = {f"answers/{part}": value for part, value in values.items()}
        found[f"{name}_0"] = Made(history=[{"step": 0} | point, {"step": 4} | point])
    return found


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (
            {
                "finetune": (0.1, 0.1),
                "ga": (9.0, 8.0),
                "npo": (3.0, 2.0),
                "npo_rt": (2.0, 0.2),
            },
            ["holds"] * 4,
        ),
        (
            {
                "finetune": (0.1, 0.1),
                "ga": (1.0, 0.2),
                "npo": (3.0, 2.0),
                "npo_rt": (0.3, 0.5),
            },
            ["fails"] * 4,
        ),
    ],
)
def test_claims_on_losses_made_by_hand(tmp_path, losses, expected):
    methods = {name: ALL[name] for name in METHODS}
    results = tofu_report.results(methods, range(1), made(losses), tmp_path)
    assert verdicts(npo_tofu, results) == expected
    assert verdicts(npo_tofu, results, "smoke") == ["not tested"] * 4
    kept = results.values["effects"]["ga_retain_kept"]["estimate"]
    start, end = losses["finetune"][1], losses["ga"][1]
    assert kept == pytest.approx(np.exp(start - end), rel=1e-3)
    rise = results.values["effects"]["ga_over_npo_forget_rise"]["estimate"]
    assert rise == pytest.approx((losses["ga"][0] - 0.1) / (losses["npo"][0] - 0.1), rel=1e-3)
    assert results.values["forget_quality"]["finetune"][0] < 0.01
    assert set(results.values["models"]) == {"finetune", "retrain", *METHODS}
    assert all(path.exists() for path in results.plots.values())


def test_a_claim_about_a_method_that_was_not_run_is_not_tested(tmp_path):
    losses = {"finetune": (0.1, 0.1), "npo_rt": (2.0, 0.2)}
    results = tofu_report.results({"npo_rt": ALL["npo_rt"]}, range(1), made(losses), tmp_path)
    expected = ["not tested", "holds", "not tested", "not tested"]
    assert verdicts(npo_tofu, results) == expected


def test_each_claim_reads_its_own_effect():
    names = ("ga_retain_kept", "npo_rt_forget_kept", "npo_rt_minus_ga_retain")
    effects = {name: {"estimate": 0.4, "low": 0.3, "high": 0.6} for name in names}
    effects["ga_over_npo_forget_rise"] = {"estimate": 1.1, "low": 0.9, "high": 1.3}
    results = Results({"effects": effects})
    expected = ["inconclusive", "inconclusive", "holds", "inconclusive"]
    assert verdicts(npo_tofu, results) == expected


# Plans.


def test_the_paper_preset_is_planned_without_data_or_weights():
    """Llama-2-7B, sharded over 8 devices: shapes only."""
    mesh = make_mesh(PAPER.mesh)
    found = {stage.name: stage for stage in npo_tofu.stages(PAPER)}
    plan = placed("finetune", found["finetune_0"].build({}), mesh)
    model = plan.state.params["model"]
    assert model["embed"]["embedding"].shape == (32000, 4096)
    assert model["layers"]["mlp"]["gate"]["kernel"].shape == (32, 4096, 11008)
    assert 6.7e9 < sum(x.size for x in jax.tree.leaves(model)) < 6.8e9
    assert plan.batch["inputs"].shape == (32, 256)
    assert found["finetune_0"].build({}).steps == 5 * 4000 // 32
    planned = {
        "finetune_0": Artefact("finetune_0", "", None, model),
        "reference_0": Artefact("reference_0", "", None),
    }
    training = found["npo_rt_0"].build(planned)
    assert training.steps == 10 * 400 // 32
    batch = placed("npo_rt", training, mesh).batch
    assert batch["forget"]["reference_log_probs"].shape == (32,)
    assert batch["retain"]["targets"].shape == (32, 256)
