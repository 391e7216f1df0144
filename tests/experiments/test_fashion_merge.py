"""Vision transformers merged: stages, sweeps, soups by hand, claims on results made by hand."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, compiled_quickly, outline, refusal, verdicts

from experiments.merging import fashion_merge
from experiments.merging.common import tasks
from experiments.merging.common.specialists import split
from experiments.merging.parts import fashion_report, measures, soups
from kd_jax.launch import run
from kd_jax.merging.average import average

SMOKE = fashion_merge.PRESETS["smoke"]


def test_stages_of_the_presets():
    members = ("member_0_0", "member_0_1")
    expected = {}
    for seed, after in ((0, 1), (1, 0)):
        base = (f"pretrained_{seed}",)
        specialists = (f"turned_{seed}", f"mirrored_{seed}")
        sweep = tuple(f"{name}_{seed}" for name in members)
        expected |= {base[0]: (), **dict.fromkeys(specialists + sweep, base)}
        other = (specialists[0], f"pretrained_{after}", f"turned_{after}")
        expected[f"soups_{seed}"] = base + sweep + other
        expected[f"merged_{seed}"] = base + specialists
    assert outline(fashion_merge, SMOKE) == expected
    laptop = fashion_merge.PRESETS["laptop"]
    assert len(laptop.sweep) == 8
    assert len(outline(fashion_merge, laptop)) == laptop.seeds * (1 + laptop.tasks + 8 + 2)


def test_what_a_stage_depends_on():
    every = set(outline(fashion_merge, SMOKE))
    measured = {name for name in every if name.startswith(("soups", "merged"))}
    members = {name for name in every if name.startswith("member")}
    for change, expected in (
        ({"folder": "elsewhere"}, set()),
        ({"noise": 0.3}, measured),
        ({"factors": (1.0, 2.0)}, None),
        ({"images": 700}, every),
        ({"pretraining_rate": 0.1}, every),
    ):
        other = dataclasses.replace(SMOKE, **change)
        if expected is None:
            assert members < set(outline(fashion_merge, other))
        else:
            assert changed(fashion_merge, SMOKE, other) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--factors", "0.5"), "factors: got (0.5,), takes 1 among them"),
        (("--factors", "1", "1"), "factors: got 1.0 1.0, takes each once"),
        (("--orders", "1"), "orders: got 1"),
        (("--noise", "0"), "noise: got 0"),
        (("--vit.image", "14", "--vit.patch", "7"), "vit: got"),
        (("--tasks", "1"), "tasks: got 1"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(fashion_merge, "smoke", *argv)


def test_generated_images_are_of_their_class_and_cut_apart():
    splits = SMOKE.benchmark.splits()
    assert [len(splits[name]["targets"]) for name in ("train", "validation", "test")] == [
        SMOKE.images,
        SMOKE.validation,
        SMOKE.test,
    ]
    train, test = splits["train"], splits["test"]
    means = np.stack([train["inputs"][train["targets"] == c].mean(0) for c in range(10)])
    apart = ((test["inputs"][:, None] - means) ** 2).sum((2, 3, 4))
    assert (apart.argmin(1) == test["targets"]).all()
    assert not {x.tobytes() for x in train["inputs"]} & {x.tobytes() for x in test["inputs"]}


def test_noise_is_of_the_size_that_is_asked_for():
    grey = tasks.Examples(np.full((1, 50, 28, 28, 1), 128, np.uint8), np.zeros((1, 50), np.int32))
    found = np.asarray(soups.noisy(grey, 0.1).inputs, np.float64)
    assert found.std() == pytest.approx(25.5, rel=0.03)
    assert found.mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.slow
def test_soups_of_models_that_were_never_trained():
    """Two members alike: the mean of the pair is a member, and the two other starts are not."""
    benchmark = SMOKE.benchmark
    base, head = split(benchmark, benchmark.model.init(jax.random.key(0)))
    one, other = (split(benchmark, benchmark.model.init(jax.random.key(i)))[0] for i in (1, 2))
    far = split(benchmark, benchmark.model.init(jax.random.key(3)))
    validation, test = (
        tasks.examples(benchmark, ["turned"], name) for name in ("validation", "test")
    )
    sets = soups.Sets(validation, test, soups.noisy(test, 0.2))
    sweep = {(0.5, 0): other, (1.0, 0): one, (1.0, 1): one}
    found = soups.measured(benchmark, head, base, sweep, [(one, head), far], sets)

    def reached(trunk, own=head):
        logits = benchmark.model.apply(
            {**trunk, "head": own}, {"inputs": test.inputs[0]}
        ).head.logits()
        return 100 * float(np.mean(np.asarray(logits).argmax(-1) == test.targets[0]))

    assert found["one of two/clean"] == found["mean of two/clean"] == pytest.approx(reached(one))
    assert found["uniform soup/clean"] == pytest.approx(reached(average([other, one, one])))
    assert found["pretrained/clean"] == pytest.approx(reached(base))
    assert found["one of other starts/clean"] == pytest.approx((reached(one) + reached(*far)) / 2)
    mixed = average([one, far[0]]), average([head, far[1]])
    assert found["mean of other starts/clean"] == pytest.approx(reached(*mixed))
    assert found["included"] in (1, 2, 3)


def made(better, seed):
    worth = {
        "greedy soup": 1.0, "model stock": 2.0, "one of other starts": 30.0 * (better > 0),
    }  # fmt: skip
    found = {
        f"{name}/{kind}": 80 + 0.1 * seed + better * worth.get(name, 0.0)
        for name in fashion_report.SOUPS
        for kind in fashion_report.KINDS
    }
    values = {}
    for name in fashion_report.UNSEARCHED:
        values[f"{name}/2/unsearched"] = 80 + 0.1 * seed
        values[f"{name}/2/searched"] = 80 + 0.1 * seed + better * (name == "TIES")
        values[f"{name}/2/scale"] = 0.5 + 0.1 * seed
    models = ("specialist", *fashion_report.UNSEARCHED)
    rows = {f"{name}{x}/tasks": np.full(2, 80.0) for name in models for x in ("", ", searched")}
    return {
        f"soups_{seed}": Made(found | {"included": 2.0 + seed}),
        f"merged_{seed}": Made(values, rows),
    }


@pytest.mark.parametrize(("better", "verdict"), [(1.0, "holds"), (-1.0, "fails")])
def test_claims_on_results_made_by_hand(tmp_path, better, verdict):
    found = fashion_merge.report(SMOKE, made(better, 0) | made(better, 1), tmp_path)
    assert verdicts(fashion_merge, found) == [verdict] * len(fashion_merge.CLAIMS)
    assert set(verdicts(fashion_merge, found, "smoke")) == {"not tested"}
    assert all(Path(path).exists() for path in found.plots.values())


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path, monkeypatch):
    # Run by test_digits_merge; here it would take long to compile.
    canned = made(0.0, 0)["merged_0"]
    monkeypatch.setattr(measures, "merged", lambda *_: {**canned.values, **canned.rows})
    config = dataclasses.replace(SMOKE, steps=2, images=64, batch_size=8, pretraining_images=16)

    def go(config):
        with compiled_quickly():
            found = run.execute(
                fashion_merge, fashion_merge.__name__, "smoke", config, tmp_path / "run"
            )
        assert {claim["verdict"] for claim in found["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
