"""Distillation on digits: stages, commands, claims, and a run of two steps."""

import dataclasses

import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import (
    Made,
    changed,
    compiled_quickly,
    help_of,
    outline,
    refusal,
    verdicts,
)

from experiments.distillation import kd_digits
from kd_jax.launch import cli, run

SMOKE = kd_digits.PRESETS["smoke"]
NAME = kd_digits.__name__


def test_stages_of_the_presets():
    two = {
        "teacher_digits": (),
        "alone_digits_0": (),
        "taught_digits_0": ("teacher_digits",),
        "alone_digits_1": (),
        "taught_digits_1": ("teacher_digits",),
    }
    assert outline(kd_digits, dataclasses.replace(SMOKE, seeds=2)) == two
    laptop = outline(kd_digits, kd_digits.PRESETS["laptop"])
    assert len(laptop) == 2 * (1 + 2 * kd_digits.PRESETS["laptop"].seeds)
    assert laptop["taught_fashion_mnist_4"] == ("teacher_fashion_mnist",)


def test_what_a_stage_depends_on():
    assert changed(kd_digits, SMOKE, dataclasses.replace(SMOKE, folder="elsewhere")) == set()
    warmer = changed(kd_digits, SMOKE, dataclasses.replace(SMOKE, temperature=2.0))
    assert warmer >= {name for name in outline(kd_digits, SMOKE) if name.startswith("taught")}


def test_the_command_line(capsys):
    text = help_of(kd_digits, "laptop", capsys)
    assert "--temperature" in text and "Softens both distributions" in text
    command = cli.parse(kd_digits, NAME, ["smoke", "--student-widths", "8", "4", "--soft", "0.5"])
    assert command.config == dataclasses.replace(SMOKE, student_widths=(8, 4), soft=0.5)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("soft", "1.5"),
        ("temperature", "0"),
        ("seeds", "1"),
        ("images", "0"),
        ("rate", "-1"),
        ("teacher-steps", "0"),
        ("student-steps", "0"),
        ("batch-size", "0"),
        ("student-widths", "0"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value):
    assert refusal(kd_digits, "smoke", f"--{flag}", value).startswith(
        f"{flag.replace('-', '_')}: got "
    )


def test_teacher_and_students_learn_on_the_data_they_should():
    """A pair of students sees the same few images in the same order; the teacher sees them all."""
    config = dataclasses.replace(SMOKE, images=70)
    found = {stage.name: stage for stage in kd_digits.stages(config)}
    artefacts = {"teacher_digits": _Planned(found["teacher_digits"].build({}))}
    alone, taught = (found[f"{a}_digits_0"].build(artefacts) for a in kd_digits.ARMS)
    everything = slice(0, config.batch_size)
    for step in (0, 5):
        a, b = alone.batches(step, everything), taught.batches(step, everything)
        assert all(np.array_equal(a[name], b[name]) for name in a)
        assert {name: (x.shape, x.dtype) for name, x in a.items()} == {
            name: (x.shape, x.dtype) for name, x in alone.batch.items()
        }
    seen = np.concatenate([alone.batches(step, everything)["inputs"] for step in range(8)])
    assert len(np.unique(seen, axis=0)) <= 70
    whole = kd_digits.stages(config)[0].build({})
    seen = np.concatenate([whole.batches(step, everything)["inputs"] for step in range(8)])
    assert len(np.unique(seen, axis=0)) > 400
    assert alone.seed == taught.seed != found["alone_digits_1"].build({}).seed


class _Planned:
    def __init__(self, training):
        self.weights = lambda: training.weights


def made(alone, taught):
    def end(value):
        return Made(
            history=[{"step": 0, "test/accuracy": 1.0}, {"step": 9, "test/accuracy": value}]
        )

    found = {"teacher_digits": end(97.0)}
    for seed, (a, b) in enumerate(zip(alone, taught, strict=True)):
        found |= {f"alone_digits_{seed}": end(a), f"taught_digits_{seed}": end(b)}
    return found


@pytest.mark.parametrize(
    ("alone", "taught", "verdict"),
    [
        ((80.0, 81.0, 82.0), (85.0, 86.5, 87.0), "holds"),
        ((85.0, 86.5, 87.0), (80.0, 81.0, 82.0), "fails"),
        ((80.0, 90.0, 85.0), (85.0, 84.0, 90.0), "inconclusive"),
    ],
)
def test_claims_on_results_made_by_hand(tmp_path, alone, taught, verdict):
    config = dataclasses.replace(SMOKE, seeds=3)
    results = kd_digits.report(config, made(alone, taught), tmp_path)
    assert verdicts(kd_digits, results) == [verdict, "not tested"]  # no Fashion-MNIST
    assert verdicts(kd_digits, results, "smoke") == ["not tested", "not tested"]
    difference = np.array(taught) - np.array(alone)
    assert results.values["gain"]["digits"]["estimate"] == pytest.approx(difference.mean())
    assert results.values["accuracy"]["digits"]["teacher"] == 97.0
    assert results.plots["accuracy"].exists()


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(
        SMOKE,
        seeds=2,
        teacher_widths=(4,),
        student_widths=(3,),
        teacher_steps=2,
        student_steps=2,
    )
    kd_digits._images.cache_clear()

    def go(config):
        with compiled_quickly():
            results = run.execute(kd_digits, NAME, "smoke", config, tmp_path / "run")
        assert [claim["verdict"] for claim in results["claims"]] == ["not tested"] * 2
        assert len(results["values"]["accuracy"]["digits"]["taught"]) == 2

    assert unread_fields(config, go) == []
