"""Merging specialists on digits: stages, commands, data, claims, and a run of two steps."""

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

from experiments.merging import _tasks, ties_digits
from kd_jax.launch import cli, run
from kd_jax.launch.claims import Results

SMOKE = ties_digits.PRESETS["smoke"]
NAME = ties_digits.__name__


def test_stages_of_the_presets():
    expected = {}
    for seed in ("0", "1"):
        tasks = (f"turned_{seed}", f"mirrored_{seed}", f"upside_down_{seed}")
        expected |= {f"pretrained_{seed}": (), **dict.fromkeys(tasks, (f"pretrained_{seed}",))}
        expected[f"merged_{seed}"] = (f"pretrained_{seed}", *tasks)
    assert outline(ties_digits, dataclasses.replace(SMOKE, seeds=2, tasks=3)) == expected
    laptop = ties_digits.PRESETS["laptop"]
    assert len(outline(ties_digits, laptop)) == laptop.seeds * (laptop.tasks + 2)


def test_what_a_stage_depends_on():
    checked = dataclasses.replace(SMOKE, checkpoint_every=7)
    assert changed(ties_digits, SMOKE, checked) == set()
    sparser = changed(ties_digits, SMOKE, dataclasses.replace(SMOKE, density=0.3))
    assert sparser >= {name for name in outline(ties_digits, SMOKE) if name.startswith("merged")}


def test_the_command_line(capsys):
    assert "--density" in help_of(ties_digits, "laptop", capsys)
    command = cli.parse(ties_digits, NAME, ["smoke", "--density", "0.5", "--widths", "8"])
    assert command.config == dataclasses.replace(SMOKE, density=0.5, widths=(8,))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("tasks", "1"),
        ("tasks", "6"),
        ("seeds", "1"),
        ("density", "0"),
        ("density", "1.5"),
        ("steps", "0"),
        ("rate", "0"),
        ("batch-size", "0"),
        ("widths", "0"),
        ("pretraining-images", "1"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value):
    assert refusal(ties_digits, "smoke", f"--{flag}", value).startswith(
        f"{flag.replace('-', '_')}: got "
    )


def test_tasks_change_images_and_splits_do_not_overlap():
    def images(split, task="turned"):
        return _tasks.changed(task, split)["inputs"]

    train, validation, test = (images(split) for split in ("train", "validation", "test"))
    assert len(validation) == -(-(len(train) + len(validation)) // _tasks.HELD_OUT)
    known = {image.tobytes() for image in train}
    assert sum(image.tobytes() in known for image in validation) < 0.05 * len(validation)
    assert sum(image.tobytes() in known for image in test) < 0.05 * len(test)
    plain = np.rot90(images("test"), -1, axes=(1, 2))
    for task, change in _tasks.TASKS.items():
        got = images("test", task)
        assert got.shape == plain.shape and got.dtype == np.uint8
        np.testing.assert_array_equal(got, change(plain))
        assert not np.array_equal(got, plain)
    mixed = _tasks.mixed(("turned", "mirrored"), 10)
    np.testing.assert_array_equal(mixed["inputs"][:5], train[:5])
    np.testing.assert_array_equal(mixed["inputs"][5:], images("train", "mirrored")[5:10])


def made(normalised):
    """Merged artefacts of three seeds with these normalised accuracies."""
    names = ("pretrained", *ties_digits.MERGES)
    found = {}
    for seed in range(3):
        values = {f"{name}/normalised": normalised[name][seed] for name in names}
        values |= {f"{n}/{t}": 90.0 + seed for n in ("specialist", *names) for t in _TASKS}
        found[f"merged_{seed}"] = Made(values)
    return found


_TASKS = ("turned", "mirrored")


@pytest.mark.parametrize(
    ("ties", "others", "verdict"),
    [
        ((90.0, 91.0, 92.0), (80.0, 80.5, 83.0), "holds"),
        ((80.0, 80.5, 83.0), (90.0, 91.0, 92.0), "fails"),
        ((80.0, 90.0, 85.0), (85.0, 84.0, 90.0), "inconclusive"),
    ],
)
def test_claims_on_results_made_by_hand(tmp_path, ties, others, verdict):
    config = dataclasses.replace(SMOKE, seeds=3, tasks=2)
    normalised = dict.fromkeys(("pretrained", *ties_digits.MERGES), others)
    normalised |= {"TIES": ties, "TIES, validated": ties}
    results = ties_digits.report(config, made(normalised), tmp_path)
    assert verdicts(ties_digits, results) == [verdict] * 3
    assert verdicts(ties_digits, results, "smoke") == ["not tested"] * 3
    # Each claim reads its own two merges.
    for at, (ours, theirs) in enumerate(
        (
            ("TIES", "average"),
            ("TIES", "task arithmetic"),
            ("TIES, validated", "task arithmetic, validated"),
        )
    ):
        alone = dict.fromkeys(normalised, (50.0, 50.0, 50.0))
        alone |= {ours: (60.0, 61.0, 62.0), theirs: (10.0, 11.5, 12.0)}
        assert verdicts(ties_digits, Results({"normalised": alone}))[at] == "holds"
        alone |= {ours: alone[theirs], theirs: alone[ours]}
        assert verdicts(ties_digits, Results({"normalised": alone}))[at] == "fails"


def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(ties_digits, "SCALES", (0.5, 1.0))
    config = dataclasses.replace(SMOKE, seeds=2, tasks=2, widths=(6, 5), steps=2)
    _tasks._digits.cache_clear()
    folder = tmp_path / "run"

    def go(config):
        with compiled_quickly():
            results = run.execute(ties_digits, NAME, "smoke", config, folder)
        assert [claim["verdict"] for claim in results["claims"]] == ["not tested"] * 3
        assert set(results["values"]["normalised"]) == {"pretrained", *ties_digits.MERGES}

    assert unread_fields(config, go) == []
