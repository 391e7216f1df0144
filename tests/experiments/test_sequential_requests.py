"""A stream of requests to forget: stages, what each is trained on, claims."""

import dataclasses

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, help_of, outline, refusal, verdicts

from experiments.unlearning import sequential_requests
from experiments.unlearning.common import qa, runs
from experiments.unlearning.parts import requests_report as report
from kd_jax.launch.artefacts import Artefact

SMOKE, LAPTOP = (sequential_requests.PRESETS[name] for name in ("smoke", "laptop"))
LABELS = {"graddiff": "GradDiff", "npo_rt": "NPO+RT"}


def needs_of(config, seed):
    found = {f"finetune_{seed}": (), f"finetune_{seed}_score": (f"finetune_{seed}",)}
    for method in config.methods:
        start = f"finetune_{seed}"
        for i in range(config.requests):
            name = f"{method}_{i + 1}_{seed}"
            found[f"{name}_reference"] = (start,)
            found |= {name: (start, f"{name}_reference"), f"{name}_score": (name,)}
            start = name
    return found | {f"retrain_{seed}": (), f"retrain_{seed}_score": (f"retrain_{seed}",)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", sequential_requests.PRESETS)
def test_stages_of_the_presets(preset):
    """Each request starts from the model before, which is its reference too."""
    config, expected = sequential_requests.PRESETS[preset], {}
    for seed in config.repetitions:
        expected |= needs_of(config, seed)
    assert outline(sequential_requests, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(sequential_requests, SMOKE))
    trained = {name for i in (1, 2) for name in (f"npo_rt_{i}_0", f"npo_rt_{i}_0_score")}
    # The second request has another start, so another reference.
    later = trained | {"npo_rt_2_0_reference"}
    for change, expected in (
        ({"beta": 0.2}, later),
        ({"unlearn": dataclasses.replace(SMOKE.unlearn, rate=1e-4)}, later),
        ({"finetune": dataclasses.replace(SMOKE.finetune, rate=1e-4)}, every),
        ({"wrong_answers": 1}, {name for name in every if name.endswith("_score")}),
        ({"microbatches": 2}, set()),
        ({"simnpo_rate": 2.0}, set()),
    ):
        other = dataclasses.replace(SMOKE, **change)
        assert changed(sequential_requests, SMOKE, other) == expected, change


def built(config, name, monkeypatch):
    """A training of a stream, its reference's rows all 0."""
    language = runs.language(config, 0)
    shapes = jax.eval_shape(language.model.init, jax.random.key(0))
    found = {n: Artefact(n, "", None, shapes) for n in outline(sequential_requests, config)}
    zeros = dict.fromkeys(("forget", "refusal"), np.zeros(config.asked[0].stop, np.float32))
    monkeypatch.setattr(runs.precompute, "rows_of", lambda stored, **_: zeros)
    stages = {stage.name: stage for stage in sequential_requests.stages(config)}
    return stages[name].build(found), language.tokenizer()


@pytest.mark.parametrize("number", [1, 2])
def test_a_request_sees_its_own_questions_and_those_to_keep(number, monkeypatch):
    training, tokenizer = built(SMOKE, f"npo_rt_{number}_0", monkeypatch)
    batches = [training.batches(step, slice(0, 16)) for step in range(4)]
    questions = qa.load(SMOKE.data)
    assert training.steps == 4 * 20 // 16
    for part, records in (
        ("forget", questions.forget[SMOKE.asked[number - 1]]),
        ("retain", questions.retain),
    ):
        seen = {row.tobytes() for batch in batches for row in batch[part]["inputs"]}
        own = qa.answer_rows(tokenizer, records, SMOKE.data.length)["inputs"]
        assert seen <= {row.tobytes() for row in own}
    assert {row for batch in batches for row in batch["forget"]["index"]} == set(range(20))


def test_simnpo_has_a_rate_of_its_own():
    for name, rate in (("npo_rt", 2e-3), ("simnpo", 16e-3)):
        assert SMOKE.of(name).unlearn.rate == pytest.approx(rate)
    both = dataclasses.replace(SMOKE, methods=("npo_rt", "simnpo"))
    other = changed(sequential_requests, both, dataclasses.replace(both, simnpo_rate=2.0))
    assert {name for name in other if not name.startswith("simnpo")} == set()
    assert {"simnpo_1_0", "simnpo_2_0"} <= other


def test_the_requests_are_all_that_is_to_be_forgotten():
    assert [(part.start, part.stop) for part in LAPTOP.asked] == [
        (0, 20),
        (20, 40),
        (40, 60),
        (60, 80),
    ]


def test_bad_configs_are_refused_in_one_line():
    for argv, said in (
        (("--requests", "1"), "requests: got 1, takes at least 2"),
        (("--requests", "3"), "requests: got 3, takes divisors of the 40 questions to forget"),
        (("--methods", "npo_rt", "npo_rt"), "methods: got npo_rt npo_rt, takes each once"),
    ):
        assert said in refusal(sequential_requests, "smoke", *argv)


def test_help_says_what_the_fields_are(capsys):
    said = help_of(sequential_requests, "laptop", capsys)
    assert "--requests" in said and "equal parts" in said


# What the report makes of numbers made by hand: 2 requests of 2 questions, 2 seeds.

ASKED = (slice(0, 2), slice(2, 4))


def made(streams, jitter=0.01):
    """{method: [(request 1, request 2, kept) fine-tuned, after 1, after 2]} as artefacts."""
    found = {}
    for seed in range(2):
        for method, models in streams.items():
            names = ["finetune", *(f"{method}_{i}" for i in (1, 2))]
            rows = []
            for name, (first, second, kept) in zip(names, models, strict=True):
                move = np.exp(-jitter * seed)
                rows.append(
                    {
                        "forget_loss": -np.log(move * np.repeat([first, second], 2)),
                        "retain_loss": -np.log(move * np.repeat(kept, 3)),
                    }
                )
                values = {"forget_probability": 0.1, "retain_probability": 0.9 - 0.01 * seed}
                found[f"{name}_{seed}_score"] = Made(values, rows[-1])
            for i in (1, 2):
                points = {
                    f"{step}/answers/{key}": x
                    for step, row in ((0, rows[i - 1]), (5, rows[i]))
                    for key, x in row.items()
                }
                found[f"{method}_{i}_{seed}"] = Made({}, points, [{"step": 0}, {"step": 5}])
        found[f"retrain_{seed}_score"] = found[f"finetune_{seed}_score"]
    return found


FALLING = {
    "graddiff": [(0.9, 0.9, 0.9), (0.1, 0.5, 0.6), (0.01, 0.1, 0.2)],
    "npo_rt": [(0.9, 0.9, 0.9), (0.1, 0.7, 0.8), (0.3, 0.1, 0.6)],
}
RISING = {
    "graddiff": [(0.9, 0.9, 0.9), (0.1, 0.5, 0.6), (0.01, 0.1, 0.8)],
    "npo_rt": [(0.9, 0.9, 0.9), (0.1, 0.7, 0.4), (0.01, 0.1, 0.6)],
}


@pytest.mark.parametrize(("streams", "verdict"), [(FALLING, "holds"), (RISING, "fails")])
def test_claims_on_streams_made_by_hand(tmp_path, streams, verdict):
    found = report.results(LABELS, ASKED, range(2), made(streams), tmp_path)
    assert verdicts(sequential_requests, found) == [verdict] * 4
    effects = found.values["effects"]
    # Two seeds, the second at exp(-0.01) of the first: their mean.
    mean = (1 + np.exp(-0.01)) / 2
    graddiff, npo = streams["graddiff"], streams["npo_rt"]
    for name, expected in (
        ("graddiff_retain_fall", graddiff[1][2] - graddiff[2][2]),
        ("npo_rt_minus_graddiff_retain", npo[2][2] - graddiff[2][2]),
        ("npo_rt_first_return", npo[2][0] - npo[1][0]),
    ):
        assert effects[name]["estimate"] == pytest.approx(mean * expected)
    assert all(path.exists() for path in found.plots.values())
    first, last = found.tables[0].rows[0], found.tables[0].rows[-1]
    assert first["earlier requests"] is None
    assert first["later requests"].estimate == pytest.approx(mean * graddiff[1][1])
    assert last["method"] == "retrained" and last["what is kept"].estimate == pytest.approx(0.895)


def test_the_steps_of_a_stream_follow_one_another():
    lines = report._along(made(FALLING, 0.0), "npo_rt", ASKED, range(2))
    assert list(lines["request 1"].x) == [0, 5, 10]
    np.testing.assert_allclose(lines["request 1"].y, [0.9, 0.1, 0.3])
    np.testing.assert_allclose(lines["request 2"].y, [0.9, 0.7, 0.1])
    np.testing.assert_allclose(lines["kept"].y, [0.9, 0.8, 0.6])


@pytest.mark.slow
def test_streams_that_differ_between_seeds_decide_nothing(tmp_path):
    apart = made(FALLING, jitter=3.0)
    found = report.results(LABELS, ASKED, range(2), apart, tmp_path)
    assert verdicts(sequential_requests, found) == ["inconclusive"] * 4


@pytest.mark.slow
def test_one_seed_and_missing_methods_are_not_tested(tmp_path):
    one = report.results(LABELS, ASKED, range(1), made(FALLING), tmp_path)
    assert verdicts(sequential_requests, one) == ["not tested"] * 4
    some = {"npo_rt": "NPO+RT"}
    two = report.results(some, ASKED, range(2), made(FALLING), tmp_path)
    expected = ["not tested", "holds", "not tested", "holds"]
    assert verdicts(sequential_requests, two) == expected


def test_own_fields_are_read():
    config = dataclasses.replace(SMOKE, methods=("simnpo",))
    unread = unread_fields(config, sequential_requests.stages)
    assert not {"methods", "requests", "simnpo_rate"} & set(unread)
