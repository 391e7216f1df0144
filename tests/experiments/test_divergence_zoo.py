"""Students of a character model: stages, what they depend on, claims on endings made by hand."""

import dataclasses

import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import divergence_zoo, on_policy, taid_capacity_gap
from experiments.distillation.common import arms, reporting
from experiments.distillation.common import text as text_lib

MODULES = [divergence_zoo, on_policy]
ENDS = {measure: i for i, measure in enumerate(reporting.MEASURES)}


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_a_stage_a_student(preset):
    config = divergence_zoo.PRESETS[preset]
    students = {f"{m}_{seed}": ("teacher",) for m in config.methods for seed in config.repetitions}
    assert outline(divergence_zoo, config) == {"teacher": ()} | students
    config = on_policy.PRESETS[preset]
    expected = {"teacher": ()}
    for seed in config.repetitions:
        expected |= {f"start_{seed}": ()}
        expected |= {f"{m}_{seed}": ("teacher", f"start_{seed}") for m in config.methods}
    assert outline(on_policy, config) == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_what_a_student_depends_on(module):
    smoke = module.PRESETS["smoke"]
    every = set(outline(module, smoke))
    for change, expected in (
        ({"learn": dataclasses.replace(smoke.learn, rate=1e-4)}, every - {"teacher"}),
        (
            {"learn_teacher": dataclasses.replace(smoke.learn_teacher, rate=1e-4)},
            {name for name in every if not name.startswith("start")},
        ),
        ({"text": dataclasses.replace(smoke.text, folder="elsewhere")}, set()),
        ({"text": dataclasses.replace(smoke.text, length=24)}, every),
    ):
        config = dataclasses.replace(smoke, **change)
        assert changed(module, smoke, config) == expected, change


def test_every_loss_has_a_name_and_the_zoo_has_all():
    assert set(arms.ARMS) == set(divergence_zoo.PRESETS["laptop"].methods)
    assert set(on_policy.ARMS) == set(on_policy.PRESETS["laptop"].methods)


@pytest.mark.parametrize(
    ("module", "argv", "said"),
    [
        (divergence_zoo, ("--methods", "taid", "taid"), "methods: got taid taid, takes each once"),
        (divergence_zoo, ("--prompt", "40"), "prompt: got 40, takes up to text.length, 32"),
        (on_policy, ("--methods", "own"), "own"),
        (on_policy, ("--threshold", "2"), "threshold: got 2.0, takes a number in [0, 1]"),
        (on_policy, ("--capacity", "0"), "capacity"),
        (taid_capacity_gap, ("--depths", "2", "1"), "depths: got 2 1, takes at least two"),
        (taid_capacity_gap, ("--seeds", "0"), "seeds"),
    ],
)
def test_bad_values_are_refused_by_name(module, argv, said):
    assert said in refusal(module, "smoke", *argv)


def student(offset):
    """Measured twice, of which only the last counts."""
    history = [
        {"step": step, **{f"held_out/{m}": i + offset + more for m, i in ENDS.items()}}
        for step, more in ((0, 5.0), (10, 0.0))
    ]
    return Made(history=history)


def endings(offsets, seeds=(0, 1)):
    return {
        f"{name}_{seed}": student(offset + 0.001 * seed)
        for name, offset in offsets.items()
        for seed in seeds
    }


def zoo(tmp_path, offsets, seeds=(0, 1)):
    labels = {name: arms.ARMS[name].label for name in offsets}
    return reporting.results(labels, seeds, endings(offsets, seeds), tmp_path)


def test_claims_of_the_zoo_on_endings_made_by_hand(tmp_path):
    low = dict.fromkeys(("reverse", "skew", "adaptive", "taid"), 0.1)
    results = zoo(tmp_path, {"alone": 0.5, "forward": 0.2, **low})
    assert verdicts(divergence_zoo, results) == ["holds"] * 6
    assert results.values["ends"]["forward"]["nll"] == pytest.approx([0.2, 0.201])
    row = results.tables[0].rows[1]
    assert row[reporting.MEASURES["own_reverse"]].estimate == pytest.approx(4.2005)
    assert all(path.exists() for path in results.plots.values())
    high = dict.fromkeys(low, 0.3)
    results = zoo(tmp_path, {"alone": 0.1, "forward": 0.2, **high})
    assert verdicts(divergence_zoo, results) == ["fails"] * 6


def test_a_loss_that_was_not_run_and_a_single_seed_are_not_tested(tmp_path):
    results = zoo(tmp_path, {"alone": 0.5, "forward": 0.2})
    assert verdicts(divergence_zoo, results) == ["holds"] * 2 + ["not tested"] * 4
    results = zoo(tmp_path, {"alone": 0.5, "forward": 0.2}, seeds=(3,))
    assert verdicts(divergence_zoo, results) == ["not tested"] * 6


def test_claims_of_on_policy_on_endings_made_by_hand(tmp_path):
    offsets = {name: 0.5 if name.endswith("data") else 0.2 for name in on_policy.ARMS}
    labels = {name: arm.label for name, arm in on_policy.ARMS.items()}
    results = reporting.results(labels, (0, 1), endings(offsets), tmp_path)
    assert verdicts(on_policy, results) == ["holds"] * 4
    turned = endings({name: -x for name, x in offsets.items()})
    assert verdicts(on_policy, reporting.results(labels, (0, 1), turned, tmp_path)) == ["fails"] * 4


@pytest.mark.parametrize(
    ("forward", "taid", "expected"),
    [
        ((2.0, 1.9, 1.95), (2.0, 1.8, 1.7), ["holds"] * 3),
        ((2.0, 1.8, 1.6), (2.0, 1.9, 1.8), ["holds", "fails", "fails"]),
        ((2.0, 1.9, 1.8), (2.0, 2.1, 2.2), ["fails"] * 3),
    ],
)
def test_claims_of_the_capacity_gap(tmp_path, forward, taid, expected):
    config = dataclasses.replace(taid_capacity_gap.PRESETS["laptop"], seeds=2, seed=0)
    found = endings(
        {
            f"{loss}_{depth}": x
            for loss, values in (("forward", forward), ("linear", forward), ("taid", taid))
            for depth, x in zip(config.depths, values, strict=True)
        }
    )
    own = {f"teacher_{d}_score": Made(values={"nll": 2.0 - 0.1 * d}) for d in config.depths}
    results = taid_capacity_gap.report(config, found | own, tmp_path)
    assert results.values["teachers"] == pytest.approx([1.9, 1.8, 1.6])
    assert verdicts(taid_capacity_gap, results) == expected
    assert results.values["nll"]["taid"][2] == pytest.approx([taid[2], taid[2] + 0.001])
    assert all(path.exists() for path in results.plots.values())


def test_every_depth_has_its_own_teacher():
    config = taid_capacity_gap.PRESETS["smoke"]
    found = outline(taid_capacity_gap, config)
    teachers = {"teacher_1": (), "teacher_2": ()}
    teachers |= {f"{name}_score": (name,) for name in teachers}
    assert {name: x for name, x in found.items() if name.startswith("teacher")} == teachers
    assert found["taid_2_0"] == ("teacher_2",)
    slower = dataclasses.replace(config.learn_teacher, rate=1e-4)
    other = dataclasses.replace(config, learn_teacher=slower)
    assert changed(taid_capacity_gap, config, other) == set(found)


def test_rows_of_a_text_and_their_prompts():
    corpus = text_lib.load(text_lib.Text(length=8, held_out=5))
    assert corpus.held_out.shape == (5, 9) and corpus.train.shape[1] == 9
    batch = text_lib.rows(corpus.held_out, given=3)
    assert (batch["inputs"][:, 1:] == batch["targets"][:, :-1]).all()
    # The third character is the last that is given; the fourth is the first to predict.
    assert batch["weights"][0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="text.held_out: got 100000"):
        text_lib.load(text_lib.Text(length=8, held_out=100_000))
