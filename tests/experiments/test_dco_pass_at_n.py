"""Guesses: stages, wrong labels, what a model is measured by, claims on endings made by hand."""

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

from experiments.preference import dco_pass_at_n
from kd_jax.launch import run
from kd_jax.launch.config import identity
from kd_jax.launch.stages import keys

SMOKE = dco_pass_at_n.PRESETS["smoke"]


def test_a_stage_a_model():
    assert outline(dco_pass_at_n, SMOKE) == {
        f"for_{n}_{seed}": () for seed in (0, 1) for n in (1, 16)
    }
    laptop = outline(dco_pass_at_n, dco_pass_at_n.PRESETS["laptop"])
    assert list(laptop)[:4] == ["for_1_10", "for_4_10", "for_16_10", "for_64_10"]


def test_what_a_model_depends_on():
    every = set(outline(dco_pass_at_n, SMOKE))
    for change, expected in (({"folder": "elsewhere"}, set()), ({"noise": 0.1}, every)):
        other = dataclasses.replace(SMOKE, **change)
        assert changed(dco_pass_at_n, SMOKE, other) == expected
    same = {name for name, _ in _keys(SMOKE) & _keys(dataclasses.replace(SMOKE, seed=1))}
    assert same == {"for_1_1", "for_16_1"}


def _keys(config):
    stages = dco_pass_at_n.stages(config)
    return set(keys(stages, dco_pass_at_n.__name__, identity(config)).items())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--counts", "4", "16"), "counts: got 4 16, takes 1, cross-entropy"),
        (("--counts", "1", "1"), "counts: got 1 1, takes each once"),
        (("--noise", "2"), "noise: got 2.0"),
        (("--seeds", "1"), "seeds: got 1"),
        (("--measured", "100"), "measured: got 100"),
        (("--widths", "0"), "widths: got (0,)"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(dco_pass_at_n, "smoke", *argv)


def test_wrong_labels():
    train = {"inputs": np.arange(50), "targets": np.arange(50) % 10}
    found = dco_pass_at_n.noisy(train, 40, 0.3, seed=3)
    assert len(np.unique(found["inputs"])) == 40
    wrong = found["targets"] != found["inputs"] % 10
    assert wrong.sum() == 12
    assert ((found["targets"] >= 0) & (found["targets"] < 10)).all()
    again, other = (dco_pass_at_n.noisy(train, 40, 0.3, seed=s) for s in (3, 4))
    assert (again["targets"] == found["targets"]).all()
    assert (other["inputs"] != found["inputs"]).any()


def made(ends, early):
    """{(n, measure): the mean over seeds}, at the end and early."""
    found = {}
    for n in (1, 4, 16, 64):
        for seed in (0, 1):
            history = [
                {
                    "step": step,
                    **{
                        f"test/{m}": values[n][i] + 0.1 * seed
                        for i, m in enumerate(("pass@1", "pass@4", "pass@16", "pass@64"))
                    },
                    "test/confidence": values[n][0] + 10,
                }
                for step, values in ((0, early), (10, early), (20, ends))
            ]
            found[f"for_{n}_{seed}"] = Made(history=history)
    return found


def test_claims_on_endings_made_by_hand(tmp_path):
    config = dataclasses.replace(dco_pass_at_n.PRESETS["laptop"], seeds=2, seed=0)
    # The matched one is the best in every column.
    ends = {1: (60, 75, 84, 90), 4: (55, 79, 90, 95), 16: (38, 76, 95, 99), 64: (19, 55, 94, 100)}
    early = dict.fromkeys(ends, (45, 80, 96, 99))
    results = dco_pass_at_n.report(config, made(ends, early), tmp_path)
    assert verdicts(dco_pass_at_n, results) == ["holds"] * 8
    assert results.values["ends"]["16"]["pass@4"] == pytest.approx([76, 76.1])
    assert results.tables[1].rows[0]["pass@16 (%)"].estimate == pytest.approx(96.05)
    assert all(path.exists() for path in results.plots.values())
    turned = {n: ends[m] for n, m in zip(ends, reversed(ends), strict=True)}
    results = dco_pass_at_n.report(config, made(turned, turned), tmp_path)
    assert verdicts(dco_pass_at_n, results) == ["fails"] * 8


@pytest.mark.slow
def test_a_run_of_two_epochs_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(SMOKE, images=200, widths=(4,), epochs=2)

    def whole(config):
        with compiled_quickly():
            run.execute(dco_pass_at_n, dco_pass_at_n.__name__, "smoke", config, tmp_path / "run")

    dco_pass_at_n._images.cache_clear()
    assert unread_fields(config, whole) == []
