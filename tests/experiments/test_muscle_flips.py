"""Old and new versions: stages, what is measured of answers made by hand, claims, a tiny run."""

import dataclasses

import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import (
    Made,
    changed,
    compiled_quickly,
    outline,
    refusal,
    verdicts,
)

from experiments.merging import muscle_flips
from experiments.merging.parts import versions
from kd_jax.launch import run

SMOKE = muscle_flips.PRESETS["smoke"]
LAPTOP = muscle_flips.PRESETS["laptop"]


def test_stages_of_the_presets():
    both = ("old_digits_0", "new_digits_0")
    expected = dict.fromkeys(both, ()) | {f"{arm}_digits_0": both for arm in versions.ARMS}
    found = outline(muscle_flips, SMOKE)
    assert {name: needs for name, needs in found.items() if name.endswith("_0")} == expected
    assert len(outline(muscle_flips, LAPTOP)) == 2 * 5 * (2 + len(versions.ARMS))
    assert "muscle_fashion_mnist_14" in outline(muscle_flips, LAPTOP)


def test_what_a_stage_depends_on():
    assert changed(muscle_flips, SMOKE, dataclasses.replace(SMOKE, folder="elsewhere")) == set()
    every = set(outline(muscle_flips, SMOKE))
    own = {name for name in every if not name.startswith(("old_digits", "new_digits"))}
    assert changed(muscle_flips, SMOKE, dataclasses.replace(SMOKE, third_steps=7)) == own
    assert changed(muscle_flips, SMOKE, dataclasses.replace(SMOKE, noise=7.0)) == every
    assert changed(muscle_flips, SMOKE, dataclasses.replace(SMOKE, fashion=False)) == set()
    other = dataclasses.replace(SMOKE, split="validation")
    assert changed(muscle_flips, SMOKE, other) == every


@pytest.mark.parametrize("flag", ["noise", "copies", "old-widths", "rate", "third-steps"])
def test_bad_values_are_refused_by_name(flag):
    said = refusal(muscle_flips, "smoke", f"--{flag}", "0")
    assert said.startswith(f"{flag.replace('-', '_')}: got ")


def test_one_seed_is_refused():
    assert refusal(muscle_flips, "smoke", "--seeds", "1").startswith("seeds: got 1")


def test_noisy_copies_are_of_images_that_other_splits_do_not_have():
    plain, found = (
        versions.splits("digits", None, 1e-3, 1),
        versions.splits("digits", None, 60, 3),
    )
    for name, of in found.items():
        assert len(of["targets"]) == 3 * len(plain[name]["targets"])
        np.testing.assert_array_equal(of["targets"], np.tile(plain[name]["targets"], 3))
        assert of["inputs"].dtype == np.uint8
        first, second = np.split(of["inputs"].astype(float), 3)[:2]
        assert 10 < np.abs(first - second).mean() < 100
    sizes = {name: len(x["targets"]) for name, x in plain.items()}
    assert sizes["train"] + sizes["validation"] > 1200 and sizes["test"] >= 300


# Four images, of which the old version has three right: [right, right, right, wrong].
TARGETS = np.array([0, 1, 2, 3])
OLD = [0, 1, 2, 0]


def versions_made(flipped):
    """{version: how many of the old version's right answers it loses}; all gain the last."""
    found = {}
    for seed in (0, 1):
        for version, lost in flipped.items():
            answers = np.array([9] * lost + [*TARGETS[lost:]]) if version != "old" else OLD
            rows = {
                "7/held_out/answer": np.array(answers),
                "7/held_out/likelihood": np.where(np.array(answers) == TARGETS, 0.9, 0.2),
            }
            found[f"{version}_digits_{seed}"] = Made(history=[{"step": 0}, {"step": 7}], rows=rows)
    return found


@pytest.fixture
def four_images(monkeypatch):
    monkeypatch.setattr(versions, "splits", lambda *_: {"test": {"targets": TARGETS}})


def test_measures_of_answers_made_by_hand(four_images, tmp_path):
    lost = {"old": 0, "new": 3, "muscle": 2} | dict.fromkeys(versions.ARMS, 2)
    results = muscle_flips.report(SMOKE, versions_made(lost), tmp_path)
    of = results.values["digits"]
    assert of["accuracy"]["old"] == [75.0] * 2 and of["accuracy"]["new"] == [25.0] * 2
    assert of["flips"]["new"] == [75.0] * 2 and of["flips"]["muscle"] == [50.0] * 2
    assert of["relative"]["muscle"] == pytest.approx([-100 / 3] * 2)
    assert of["gains"]["muscle"] == [25.0] * 2
    assert of["changed"]["muscle"] == [50.0] * 2
    assert of["mean_gain"]["muscle"] == pytest.approx([0.7] * 2)
    assert of["mean_regression"]["muscle"] == pytest.approx([0.7] * 2)
    assert all(path.exists() for path in results.plots.values())


def test_claims(four_images, tmp_path):
    # Fewer flips than the new version by a third, as accurate or more; other masks lose as much.
    lost = {"old": 0, "new": 3} | dict.fromkeys(versions.ARMS, 3) | {"muscle": 2}
    results = muscle_flips.report(SMOKE, versions_made(lost), tmp_path)
    assert verdicts(muscle_flips, results) == ["holds"] * 5 + ["not tested"] * 5
    lost = {"old": 0, "new": 2} | dict.fromkeys(versions.ARMS, 2) | {"muscle": 3}
    results = muscle_flips.report(SMOKE, versions_made(lost), tmp_path)
    assert verdicts(muscle_flips, results) == ["fails"] * 5 + ["not tested"] * 5
    lost = {"old": 0, "new": 0} | dict.fromkeys(versions.ARMS, 0)
    results = muscle_flips.report(SMOKE, versions_made(lost), tmp_path)
    assert verdicts(muscle_flips, results)[0] == "inconclusive"  # of no flips there is no share


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path, monkeypatch):
    one = {"muscle": versions.ARMS["muscle"]}
    monkeypatch.setattr(muscle_flips, "ARMS", one)
    monkeypatch.setattr(versions, "ARMS", one)
    config = dataclasses.replace(
        SMOKE, copies=1, old_widths=(3,), new_widths=(4,), steps=2, third_steps=2, batch_size=8
    )

    def go(config):
        with compiled_quickly():
            results = run.execute(
                muscle_flips, muscle_flips.__name__, "smoke", config, tmp_path / "run"
            )
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
