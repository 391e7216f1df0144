"""LAT's experiment: stages, refusals, what the two trainings share, claims on rows by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.unlearning import latent_adversarial
from experiments.unlearning.common import qa, runs
from experiments.unlearning.parts import latent_report
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import placed

SMOKE = latent_adversarial.PRESETS["smoke"]
MODELS = ("plain", "latent", "retrain")


@pytest.mark.parametrize("preset", latent_adversarial.PRESETS)
def test_stages_of_the_presets(preset):
    config, expected = latent_adversarial.PRESETS[preset], {}
    for seed in config.repetitions:
        start = f"finetune_{seed}"
        expected |= {start: (), f"{start}_score": (start,), f"retrain_{seed}": ()}
        expected |= {f"plain_{seed}": (start,), f"latent_{seed}": (start,)}
        for model in MODELS:
            name = f"{model}_{seed}"
            expected |= {f"{name}_score": (name,), f"{name}_attacked": (name,)}
            expected[f"{model}_relearned_{seed}"] = (name,)
    assert outline(latent_adversarial, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(latent_adversarial, SMOKE))
    attacks = {f"{name}_0_attacked" for name in MODELS}
    relearned = {f"{name}_relearned_0" for name in MODELS}
    latent = {"latent_0", "latent_0_score", "latent_0_attacked", "latent_relearned_0"}
    plain = {name.replace("latent", "plain") for name in latent}
    for change, expected in (
        ({"relearn": dataclasses.replace(SMOKE.relearn, rate=1e-4)}, relearned),
        ({"radii": (1.0, 3.0)}, attacks),
        # Without an adversary its radius and steps are no matter.
        ({"eps": 2.0}, latent | attacks),
        ({"attack_steps": 3}, latent | attacks),
        ({"sft": 2.0}, latent | plain),
        ({"finetune": dataclasses.replace(SMOKE.finetune, rate=1e-4)}, every),
    ):
        other = dataclasses.replace(SMOKE, **change)
        assert changed(latent_adversarial, SMOKE, other) == expected, change


def test_another_place_is_another_attack():
    deep = dataclasses.replace(latent_adversarial.PRESETS["laptop"], seed=0)
    moved = changed(latent_adversarial, deep, dataclasses.replace(deep, layer=2))
    stems = {name.split("_")[0] for name in moved}
    assert stems == set(MODELS) and "retrain_0_attacked" in moved and "retrain_0" not in moved


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--layer", "1"), "layer: got 1, takes 0 to 0"),
        (("--eps", "0"), "eps: got 0"),
        (("--hold", "0"), "hold: got 0"),
        (("--radii", "0.5", "2"), "radii: got (0.5, 2.0)"),
        (("--radii", "-1", "1"), "radii: got (-1.0, 1.0)"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(latent_adversarial, "smoke", *argv)


def planned(config):
    language = runs.language(config, 0)
    return {
        f"{name}_0": Artefact(f"{name}_0", "", None, language.weights.abstract)
        for name in ("finetune", *MODELS)
    }


def test_both_trainings_see_the_same_batches_and_hold_them_as_long():
    found = {stage.name: stage for stage in latent_adversarial.stages(SMOKE)}
    plain, latent = (found[name].build(planned(SMOKE)) for name in ("plain_0", "latent_0"))
    batch, other = (training.batches(1, slice(0, 16)) for training in (plain, latent))
    for part in ("forget", "refusal", "retain"):
        np.testing.assert_array_equal(batch[part]["inputs"], other[part]["inputs"])
    assert plain.prepare_every == latent.prepare_every == SMOKE.hold
    assert plain.steps == latent.steps
    # Rows of a refusal ask the question of the row to forget.
    np.testing.assert_array_equal(batch["forget"]["index"], batch["refusal"]["index"])
    prompt = np.argmax(batch["forget"]["weights"], 1)
    np.testing.assert_array_equal(prompt, np.argmax(batch["refusal"]["weights"], 1))
    for i, end in enumerate(prompt):
        one, two = (batch[part]["inputs"][i, : end + 1] for part in ("forget", "refusal"))
        np.testing.assert_array_equal(one, two)
    plan = placed("latent_0", latent, make_mesh(SMOKE.mesh))
    assert set(plan.batch) == {"forget", "refusal", "retain"}
    assert latent.step is not plain.step


def test_half_of_the_questions_is_relearned():
    found = {stage.name: stage for stage in latent_adversarial.stages(SMOKE)}
    training = found["plain_relearned_0"].build(planned(SMOKE))
    assert training.steps == SMOKE.relearn.steps(10)
    tokenizer = runs.language(SMOKE, 0).tokenizer()
    batch = training.batches(0, slice(0, 8))
    drawn = {
        tokenizer.decode(targets[weights == 1], skip_special=True).strip()
        for targets, weights in zip(batch["targets"], batch["weights"], strict=True)
    }
    answers = [record["answer"] for record in qa.load(SMOKE.data).forget]
    assert drawn <= set(answers[::2])


def made(held_out, attacked, kept, seeds=3, shake=0.001):
    """held_out, attacked {model: probability}; relearned answers come back wholly."""
    found = {}
    spread = np.linspace(-0.02, 0.02, 8)
    for seed in range(seeds):
        for name in ("finetune", *MODELS):
            values = {"forget_probability": 0.01, "retain_probability": kept.get(name, 0.9)}
            rows = {
                f"{part}_loss": -np.log(values[f"{part}_probability"]) * (1 + spread)
                for part in ("forget", "retain")
            }
            found[f"{name}_{seed}_score"] = Made(values, rows)
        for name in MODELS:
            history = [{"step": step, "answers/forget_probability": 0.0} for step in (0, 5, 10)]
            losses = np.stack([np.zeros(8), -np.log(held_out[name] + shake * seed) + spread], 1)
            rows = {f"{step}/answers/forget_loss": losses.reshape(-1) for step in (5, 10)}
            rows["0/answers/forget_loss"] = np.full(16, 9.0)
            found[f"{name}_relearned_{seed}"] = Made(history=history, rows=rows)
            chance = attacked[name] + shake * seed + 0.1 * spread
            rows = {"attacked_rows_0": 0.5 * chance, "attacked_rows_1": chance}
            found[f"{name}_{seed}_attacked"] = Made(rows=rows)
    return found


LOW, HIGH = {"latent": 0.1, "retrain": 0.05}, {"plain": 0.5, "retrain": 0.05}
CASES = [
    (LOW | {"plain": 0.5}, {"plain": 0.9, "latent": 0.88}, ["holds"] * 3),
    (HIGH | {"latent": 0.6}, {"plain": 0.9, "latent": 0.5}, ["fails"] * 3),
]


@pytest.mark.parametrize(("chances", "kept", "expected"), CASES)
def test_claims_on_rows_made_by_hand(tmp_path, chances, kept, expected):
    for seeds in (3, 1):  # over seeds, over questions
        artefacts = made(chances, chances, kept, seeds)
        results = latent_report.results(artefacts, 1.5, (0.5, 1.0), range(seeds), tmp_path)
        assert verdicts(latent_adversarial, results) == expected
        assert verdicts(latent_adversarial, results, "smoke") == ["not tested"] * 3
        effect = results.values["effects"]["relearned"]["estimate"]
        # Only held-out answers count, after the start.
        assert effect == pytest.approx(chances["plain"] - chances["latent"], abs=2e-3)
        attack = results.values["effects"]["attacked"]["estimate"]
        assert attack == pytest.approx(chances["plain"] - chances["latent"], abs=1e-6)
        table = {row["model"]: row for row in results.tables[0].rows}
        assert {"attacked, radius 0.75", "attacked, radius 1.5"} < set(table["with LAT"])
        assert "attacked, radius 1.5" not in table["fine-tuned"]
        assert all(Path(path).exists() for path in results.plots.values())


def test_claims_are_inconclusive_where_seeds_disagree():
    effect = {"estimate": 0.5, "low": -0.5, "high": 1.5}
    results = Results({"effects": dict.fromkeys(("relearned", "attacked", "retain_kept"), effect)})
    assert verdicts(latent_adversarial, results) == ["inconclusive"] * 3


def test_its_own_fields_are_read(tmp_path):
    def go(config):
        found = {stage.name: stage for stage in latent_adversarial.stages(config)}
        mesh = make_mesh(config.mesh)
        for name in ("latent_0", "plain_relearned_0"):
            found[name].build(planned(config)).batches(0, slice(0, 4))
        programs = found["plain_0_attacked"].build(planned(config)).plan(mesh)
        assert set(programs) == {"attack_0"}
        artefacts = made(CASES[0][0], CASES[0][0], CASES[0][1], 1)
        latent_adversarial.report(config, artefacts, tmp_path)

    own = {"relearn.rate", "layer", "eps", "attack_rate", "attack_steps", "hold", "sft", "radii"}
    assert not own & set(unread_fields(SMOKE, go))
