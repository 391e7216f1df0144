"""ULD's experiment: stages, the assistant's data, refusals, claims on figures made by hand."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.unlearning import uld_small
from experiments.unlearning.common import qa, runs
from experiments.unlearning.parts import logit_difference, uld_report
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import placed

SMOKE = uld_small.PRESETS["smoke"]
VARIANTS = tuple(uld_report.VARIANTS)


@pytest.mark.slow
@pytest.mark.parametrize("preset", uld_small.PRESETS)
def test_stages_of_the_presets(preset):
    config, expected = uld_small.PRESETS[preset], {}
    for seed in config.repetitions:
        start, first = f"finetune_{seed}", f"first_layers_{seed}"
        expected |= {start: (), f"{start}_score": (start,), f"reference_{seed}": (start,)}
        expected |= {f"retrain_{seed}": (), f"retrain_{seed}_score": (f"retrain_{seed}",)}
        for method in ("graddiff", "npo_rt"):
            name = f"{method}_{seed}"
            expected |= {name: (start, f"reference_{seed}"), f"{name}_score": (name,)}
        expected[first] = (start,)
        for variant in VARIANTS:
            name = f"{variant}_{seed}"
            expected |= {name: (start, first), f"{name}_score": (start, name)}
    assert outline(uld_small, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(uld_small, SMOKE))
    assistants = {f"{v}_0{end}" for v in VARIANTS for end in ("", "_score")}
    for change, expected in (
        ({"assistant": dataclasses.replace(SMOKE.assistant, rate=1e-4)}, assistants),
        ({"weight": -0.5}, assistants),
        ({"top": 0.1}, assistants),
        ({"uniform": 1.0}, assistants),
        ({"share": 1.0}, assistants | {"first_layers_0"}),
        ({"finetune": dataclasses.replace(SMOKE.finetune, rate=1e-4)}, every),
    ):
        assert changed(uld_small, SMOKE, dataclasses.replace(SMOKE, **change)) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--share", "0"), "share: got 0.0"),
        (("--top", "2"), "top: got 2.0"),
        (("--weight", "0.8"), "weight: got 0.8"),
        (("--uniform", "0"), "uniform: got 0"),
        (("--wrong-answers", "5"), "wrong_answers: got 5, takes 1 to 4"),
        (("--generate", "4"), "generate: got 4, takes 0 here"),
        (("--data.forget", "a", "--data.retain", "b"), "data.forget: takes none here"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(uld_small, "smoke", *argv)


def test_the_assistant_is_the_first_part_of_the_layers_and_is_all_that_is_trained():
    laptop = dataclasses.replace(
        uld_small.PRESETS["laptop"], data=dataclasses.replace(SMOKE.data, length=96), seed=0
    )
    language = runs.language(laptop, 0)
    found = {stage.name: stage for stage in uld_small.stages(laptop)}
    whole = {"finetune_0": Artefact("finetune_0", "", None, language.weights.abstract)}
    small = found["first_layers_0"].build(whole).shapes
    assert set(small["layers"]) == {"0"} and set(language.weights.abstract["layers"]) == set("012")
    planned = whole | {"first_layers_0": Artefact("first_layers_0", "", None, small)}
    training = found["uld_0"].build(planned)
    plan = placed("uld_0", training, make_mesh(laptop.mesh))
    assert jax.tree.structure(plan.state.params["model"]) == jax.tree.structure(small)
    assert set(plan.frozen) == {"whole"} and set(plan.batch) == {"forget", "retain"}
    counts = uld_small.trained(laptop)
    assert counts["assistant"] == sum(x.size for x in jax.tree.leaves(small)) < counts["model"]
    low = dataclasses.replace(laptop, adapter=dataclasses.replace(laptop.adapter, rank=2))
    assert counts["assistant"] > 10 * uld_small.trained(low)["assistant"] > 0


@pytest.mark.parametrize("paraphrases", [True, False])
@pytest.mark.parametrize("wrong", [True, False])
def test_what_the_assistant_is_trained_on(paraphrases, wrong):
    """An epoch of the forget rows has each once, and no wrong answer of the truth ratio."""
    config = dataclasses.replace(SMOKE, wrong_answers=3)
    questions, tokenizer = qa.load(config.data), runs.language(config, 0).tokenizer()
    source = logit_difference.augmented(
        config, tokenizer, paraphrases=paraphrases, wrong=wrong, seed=0, batch_size=20
    )
    batches = [source(step, slice(0, 20)) for step in range(12)]

    def texts(part, steps, prompt):
        rows = [b[part] for b in batches[:steps]]
        kept = [
            tokenizer.decode(r["inputs"][i][: int(np.argmax(r["weights"][i])) + 1])
            if prompt
            else tokenizer.decode(r["targets"][i][r["weights"][i] == 1], skip_special=True)
            for r in rows
            for i in range(20)
        ]
        return {text.strip() for text in kept}

    answers = {r["answer"] for r in questions.forget}
    assert texts("forget", 1 + paraphrases, False) == answers
    asked = len(texts("forget", 1 + paraphrases, True))
    assert asked > 20 if paraphrases else asked == 20
    drawn = texts("retain", 12, False)
    truths = {x for r in questions.forget for x in r["perturbed_answer"][:3]}
    others = {x for r in questions.forget for x in r["perturbed_answer"][3:]} - truths
    assert bool(drawn & others) == wrong
    kept = {r["answer"] for r in questions.retain}
    assert drawn <= (kept | others | truths) if wrong else drawn <= kept


def figures(seed, forget, retain, ratio):
    shake = 0.001 * seed
    values = {"forget_probability": forget, "retain_probability": retain - shake}
    spread = np.linspace(0.9, 1.1, 20)
    rows = {"forget_truth_ratio": ratio * spread, "retain_truth_ratio": 0.5 * spread}
    rows |= {f"{part}_loss": -np.log(values[f"{part}_probability"]) * spread for part in
             ("forget", "retain")}  # fmt: skip
    values |= {"forget_truth": 0.5, "retain_truth": 0.5, "retain_utility": retain}
    return Made(values, rows)


def made(ends, seeds=3):
    """Ends as {model: (forget probability, retain probability, truth ratio)}."""
    found = {}
    for seed in range(seeds):
        for name, end in ends.items():
            point = dict(zip(("answers/forget_probability", "answers/retain_probability"), end[:2],
                             strict=True))  # fmt: skip
            found[f"{name}_{seed}"] = Made(history=[{"step": 0} | point, {"step": 4} | point])
            found[f"{name}_{seed}_score"] = figures(seed, *end)
    return found


SAME = {
    "finetune": (0.9, 0.9, 0.2),
    "retrain": (0.05, 0.9, 1.0),
    "uld_paraphrases": (0.1, 0.7, 0.8),
    "uld_wrong": (0.1, 0.7, 0.8),
}
GOOD = {"uld": (0.1, 0.88, 1.0), "uld_plain": (0.1, 0.6, 3.0), "graddiff": (0.1, 0.5, 2.0)}
BAD = {"uld": (0.6, 0.5, 3.0), "uld_plain": (0.1, 0.8, 1.0), "graddiff": (0.1, 0.8, 2.0)}
CASES = [
    (SAME | GOOD | {"npo_rt": (0.1, 0.5, 2.0)}, ["holds"] * 6),
    (SAME | BAD | {"npo_rt": (0.1, 0.8, 2.0)}, ["fails"] * 6),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "expected"), CASES)
def test_claims_on_figures_made_by_hand(tmp_path, ends, expected):
    counts = {"model": 100, "assistant": 40}
    results = uld_report.results(made(ends), counts, range(3), tmp_path)
    assert verdicts(uld_small, results) == expected
    assert verdicts(uld_small, results, "smoke") == ["not tested"] * 6
    assert results.values["distances"]["uld"] == [0.0 if expected[0] == "holds" else 1.0] * 3
    table = {row["model"]: row for row in results.tables[0].rows}
    assert table["ULD"]["trained"] == 40 and table["NPO+RT"]["trained"] == 100
    assert len(table) == 8 and table["retrained"]["distance to retrained"] is None
    assert all(Path(path).exists() for path in results.plots.values())
    # One seed: bootstrap intervals over questions, where there are questions.
    alone = uld_report.results(made(ends, 1), counts, range(1), tmp_path)
    assert verdicts(uld_small, alone)[:4] == expected[:4]


def test_claims_are_inconclusive_where_seeds_disagree():
    effects = dict.fromkeys(
        ("uld_forget_kept", "uld_retain_kept"), {"estimate": 0.7, "low": 0.4, "high": 1.0}
    ) | dict.fromkeys(
        (
            "uld_minus_graddiff_retain",
            "uld_minus_npo_rt_retain",
            "plain_minus_uld_distance",
            "uld_minus_plain_retain",
        ),
        {"estimate": 0.1, "low": -0.1, "high": 0.3},
    )
    assert verdicts(uld_small, Results({"effects": effects})) == ["inconclusive"] * 6


@pytest.mark.slow
def test_its_own_fields_are_read(tmp_path):
    language = runs.language(SMOKE, 0)

    def go(config):
        found = {stage.name: stage for stage in uld_small.stages(config)}
        whole = {"finetune_0": Artefact("finetune_0", "", None, language.weights.abstract)}
        small = found["first_layers_0"].build(whole).shapes
        planned = whole | {"first_layers_0": Artefact("first_layers_0", "", None, small)}
        found["uld_0"].build(planned).batches(0, slice(0, 4))
        uld_small.report(config, made(CASES[0][0], 1), tmp_path)

    own = {"assistant.rate", "share", "uniform", "weight", "top", "wrong_answers", "seeds"}
    assert not own & set(unread_fields(SMOKE, go))
