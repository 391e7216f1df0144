"""Specialists of digits merged: stages, commands, claims on results made by hand, a tiny run."""

import dataclasses
from pathlib import Path

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

from experiments.merging import breadcrumbs_scaling, digits_merge
from experiments.merging.common import tasks
from experiments.merging.common.measuring import SCALES
from experiments.merging.parts import digits_report, informed, measures, methods
from kd_jax.launch import cli, run

SMOKE = digits_merge.PRESETS["smoke"]
NAME = digits_merge.__name__


def test_stages_of_the_presets():
    config = dataclasses.replace(SMOKE, seeds=2, tasks=3, seed=4)
    expected = {}
    for seed in ("4", "5"):
        base = (f"pretrained_{seed}",)
        trained = tuple(f"{task}_{seed}" for task in ("turned", "mirrored", "upside_down"))
        others = (*trained, f"multitask_{seed}")
        expected |= {base[0]: (), **dict.fromkeys(others, base)}
        expected |= {f"{name}_{seed}": base + trained for name in ("merged", "swept")}
        expected[f"ablated_{seed}"] = base + others
    assert outline(digits_merge, config) == expected
    laptop = digits_merge.PRESETS["laptop"]
    assert len(outline(digits_merge, laptop)) == laptop.seeds * (laptop.tasks + 6)


def test_what_a_stage_depends_on():
    every = set(outline(digits_merge, SMOKE))
    trained = {x for x in every if not x.startswith(("merged", "ablated", "swept"))}
    for change, expected in (
        ({"checkpoint_every": 7}, set()),
        ({"trim": 0.3}, every - trained),
        ({"rate": 0.01}, every),
        ({"pretraining_images": 200}, every),
    ):
        assert changed(digits_merge, SMOKE, dataclasses.replace(SMOKE, **change)) == expected


def test_the_command_line(capsys):
    assert "--trim" in help_of(digits_merge, "laptop", capsys)
    command = cli.parse(digits_merge, NAME, ["smoke", "--trim", "0.5", "--widths", "8"])
    assert command.config == dataclasses.replace(SMOKE, trim=0.5, widths=(8,))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("tasks", "1"),
        ("tasks", "7"),
        ("seeds", "1"),
        ("trim", "0"),
        ("trim", "1.5"),
        ("density", "2"),
        ("keep", "0"),
        ("negated", "0"),
        ("steps", "0"),
        ("rate", "0"),
        ("batch-size", "0"),
        ("widths", "0"),
        ("pretraining-images", "1"),
        ("adapt-steps", "0"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value):
    said = refusal(digits_merge, "smoke", f"--{flag}", value)
    assert said.startswith(f"{flag.replace('-', '_')}: got ")


TASKS = ("turned", "mirrored", "upside_down")
ORDERS = {0: TASKS, 1: TASKS[1:] + TASKS[:1]}


def made(better, seed):
    """Artefacts of a seed where everything that is claimed holds by `better` points."""
    noise = 0.1 * seed
    worth = {"TIES": 3 * better, "DELLA": better, "breadcrumbs": better}
    values, steps, rows = {}, {}, {}
    for count in (2, 3):
        for name in digits_report.UNSEARCHED:
            reached = 80 + noise + worth.get(name, 0.0) * (count - 1)
            values[f"{name}/{count}/unsearched"] = reached
            values[f"{name}/{count}/searched"] = reached
            values[f"{name}/{count}/scale"] = 1.0 - 0.1 * better - 0.01 * seed
        for name in methods.STEPS:
            steps[f"{name}/{count}"] = 80 + noise + better * (name == "TIES")
        steps[f"{methods.ORACLE}/{count}"] = steps[f"multitask/{count}"] = 80 + noise + 2 * better
        for i, kind in enumerate(methods.KINDS):
            steps[f"{kind}/{count}/share"] = 10.0 + i + noise * count + better * count
    for name in ("specialist", *digits_report.UNSEARCHED):
        rows[f"{name}/tasks"] = rows[f"{name}, searched/tasks"] = np.full(3, 80 + noise)
    informed_of = {f"{name}/{n}/unsearched": 90 + noise for name in informed.NAMES for n in (2, 3)}
    level = {"rescaled": 99 + better - 10 * (better < 0), "not rescaled": 98 - 10 * (better < 0)}
    swept = {name: np.full(len(measures.DROPS), 98.0 + noise) for name in level}
    for name, at in level.items():
        swept[name][measures.DROPS.index(0.9)] = at + noise * (1 + (name == "rescaled"))
    swept["scale"] = np.linspace(0, 1, len(SCALES) + 1) + noise
    swept["linear"] = np.linspace(80, 90, len(measures.SHARES)) + noise
    swept["SLERP"] = swept["linear"] + 0.1 * noise + (0.0 if better > 0 else 5.0)
    swept["negated"] = np.full((3, 3), noise) + np.eye(3) * (better + noise)
    return {
        f"merged_{seed}": Made(values, rows),
        f"ablated_{seed}": Made(steps),
        f"swept_{seed}": Made(rows=swept),
        f"informed_{seed}": Made(
            informed_of, {f"{name}/tasks": np.full(3, 90.0) for name in informed.NAMES}
        ),
    }


def results(tmp_path, better, looks=True):
    found = made(better, 0) | made(better, 1)
    return digits_report.results(TASKS, range(2, 4), ORDERS, looks, found, tmp_path)


@pytest.mark.parametrize(("better", "verdict"), [(2.0, "holds"), (-2.0, "fails")])
def test_claims_on_results_made_by_hand(tmp_path, better, verdict):
    found = results(tmp_path, better)
    assert verdicts(digits_merge, found) == [verdict] * len(digits_merge.CLAIMS)
    assert set(verdicts(digits_merge, found, "smoke")) == {"not tested"}
    assert all(Path(path).exists() for path in found.plots.values())


@pytest.mark.slow
def test_two_tasks_say_nothing_of_growth_and_data_need_not_be_looked_at(tmp_path):
    found = made(2.0, 0) | made(2.0, 1)
    two = digits_report.results(TASKS, range(2, 3), ORDERS, False, found, tmp_path)
    assert verdicts(digits_merge, two).count("not tested") == 2
    assert "Fisher" not in two.values["methods"]["unsearched"]
    assert "Fisher" in results(tmp_path, 2.0).values["methods"]["unsearched"]


def tuned(seed, methods_to_values):
    values = {}
    for method, (two, kept, anew) in methods_to_values.items():
        for count, pair in ((2, (two, two)), (3, (kept, anew))):
            for kind, value in zip(breadcrumbs_scaling.KINDS, pair, strict=True):
                values[f"{method}/{count}/{kind}"] = value + 0.1 * seed
            values[f"{method}/{count}/scale"] = 0.3 + 0.1 * seed
    return {f"tuned_{seed}": Made(values)}


@pytest.mark.parametrize(
    ("crumbs", "verdict"), [((90, 89, 89.5), "holds"), ((90, 60, 89), "fails")]
)
def test_claims_of_breadcrumbs(tmp_path, crumbs, verdict):
    config = dataclasses.replace(breadcrumbs_scaling.PRESETS["smoke"], seeds=2, tasks=3)
    of = {"task arithmetic": (90, 80, 88), "TIES": (92, 85, 90), "breadcrumbs": crumbs}
    found = breadcrumbs_scaling.report(config, tuned(0, of) | tuned(1, of), tmp_path)
    assert verdicts(breadcrumbs_scaling, found) == [verdict] * 4
    assert Path(found.plots["scaling"]).exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("tasks", "2"), ("keeps", "0"), ("densities", "0.2 0.2"), ("removes", "")]
)
def test_breadcrumbs_refuse_bad_values(flag, value):
    said = refusal(breadcrumbs_scaling, "smoke", f"--{flag}", *value.split())
    assert flag in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        digits_merge,
        breadcrumbs_scaling,
    ],
    ids=["digits_merge", "breadcrumbs_scaling"],
)
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path, module):
    config = dataclasses.replace(module.PRESETS["smoke"], widths=(6, 6), steps=2)
    tasks.digits.cache_clear()

    def go(config):
        with compiled_quickly():
            found = run.execute(module, module.__name__, "smoke", config, tmp_path / "run")
        assert {claim["verdict"] for claim in found["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
