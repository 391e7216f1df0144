"""Discovery of classes: stages, what they depend on, clusters and claims by hand."""

import dataclasses
from pathlib import Path

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

from experiments.distillation import class_discovery
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import discovered
from experiments.distillation.parts.discovery_report import ARMS, MEASURES
from kd_jax.launch import run, weights
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise

SMOKE, LAPTOP = (class_discovery.PRESETS[name] for name in ("smoke", "laptop"))


@pytest.mark.parametrize("config", [SMOKE, LAPTOP], ids=["smoke", "laptop"])
def test_stages_of_the_presets(config):
    expected = {"known": ()} | dict.fromkeys(config.arms, ("known",))
    assert outline(class_discovery, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(class_discovery, LAPTOP))
    for change, expected in (
        ({"pictures": dataclasses.replace(LAPTOP.pictures, folder="elsewhere")}, set()),
        ({"alpha": 1.0}, {"uniform", "learnt"}),
        ({"softening": 1.0}, {"uniform", "learnt"}),
        ({"learn": dataclasses.replace(LAPTOP.learn, rate=1e-2)}, set(ARMS)),
        ({"heads": 7}, set(ARMS)),
        ({"evaluations": 3}, set(ARMS)),
        ({"known": 4}, every),
        ({"widths": (32, 32)}, every),
        ({"seed": 3}, every),
    ):
        config = dataclasses.replace(LAPTOP, **change)
        assert changed(class_discovery, LAPTOP, config) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--known", "10"), "known: got 10, takes 1 to 9 of 10"),
        (("--arms", "alone", "alone"), "arms: got alone alone, takes each once"),
        (("--alpha", "0"), "alpha"),
        (("--heads", "0"), "heads"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(class_discovery, "smoke", *argv)


def test_clusters_are_matched_one_to_one():
    # Greedily, cluster 0 would take class 0 and leave cluster 1 none of its own.
    clusters = np.repeat([0, 0, 1, 2], [3, 2, 4, 1])
    targets = np.repeat([0, 1, 0, 2], [3, 2, 4, 1])
    assert discovered.matched(clusters, targets, 3).tolist() == [1, 0, 2]


def test_measures_by_hand():
    """Two known and two new classes, one head; the third image of a new class is in the wrong."""
    known = np.array([[0.9, 0], [0, 0.9], [0, 0.1], [0.1, 0], [0, 0]])
    novel = np.array([[0, 0.1], [0, 0.2], [0, 0.9], [0.7, 0.1], [0.2, 0.8]])[:, None]
    targets = np.array([0, 1, 2, 3, 3])
    found = discovered.measures(known, known, novel, targets, 0.1)
    assert found["clustering"] == pytest.approx(200 / 3)
    assert found["all"] == pytest.approx(80.0)
    assert found["divergence"] == pytest.approx(0.0)
    z = np.exp(np.concatenate([known, novel[:, 0]], 1)[2:] / 0.1)
    assert found["mass"] == pytest.approx((z[:, :2].sum(1) / z.sum(1)).mean())
    old = known + np.array([0.0, 0.1])
    p, q = (np.exp(x[2:] / 0.1) / np.exp(x[2:] / 0.1).sum(1, keepdims=True) for x in (old, known))
    found = discovered.measures(old, known, np.concatenate([novel, novel], 1), targets, 0.1)
    assert found["divergence"] == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found["clustering"] == pytest.approx(200 / 3)


def test_below_its_heads_a_model_begins_as_it_was():
    fresh = weights.from_arrays({"encoder": np.zeros(2), "head_0": np.ones(3)})
    before = weights.from_arrays({"teacher": {"encoder": np.full(2, 5.0)}})
    made = materialise(class_discovery._grown(fresh, before), make_mesh(MeshConfig()))
    assert made["encoder"].tolist() == [5, 5] and made["head_0"].tolist() == [1, 1, 1]


def artefacts(**ends):
    """The last of two points is what an arm gives: clustering, all, divergence."""

    def made(values):
        each = dict(zip(MEASURES, (*values, 0.5), strict=True))
        return Made(
            rows={
                f"{step}/{split}/{name}": value + more + np.array([0.0, 0.01])
                for step, more in ((0, 9.0), (50, 0.0))
                for split, apart in (("test", 0.0), ("validation", 100.0))
                for name, value in ((n, x + apart) for n, x in each.items())
            }
        )

    return {name: made(values) for name, values in ends.items()}


def report(found, tmp_path):
    config = dataclasses.replace(LAPTOP, seeds=2, seed=0, arms=tuple(found))
    return class_discovery.report(config, found, tmp_path)


def test_claims_on_artefacts_made_by_hand(tmp_path):
    good = artefacts(alone=(50, 60, 0.4), uniform=(60.5, 65, 0.1), learnt=(60, 65, 0.1))
    results = report(good, tmp_path)
    assert verdicts(class_discovery, results) == ["holds"] * 4
    assert all(Path(path).exists() for path in results.plots.values())
    row = results.tables[0].rows[0]
    assert row[MEASURES["clustering"]].estimate == pytest.approx(50.005)
    bad = artefacts(alone=(60, 65, 0.1), uniform=(60, 65, 0.1), learnt=(50, 60, 0.4))
    assert verdicts(class_discovery, report(bad, tmp_path)) == ["fails"] * 4


def test_an_arm_that_was_not_run_is_not_tested(tmp_path):
    found = artefacts(alone=(50, 60, 0.4), learnt=(60, 65, 0.1))
    assert verdicts(class_discovery, report(found, tmp_path)) == ["holds"] * 3 + ["not tested"]


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field(tmp_path):
    two = Learning(rate=1e-3, steps=2, batch_size=16)
    config = dataclasses.replace(
        SMOKE,
        arms=("learnt",),
        pictures=Pictures(images=60, validation=40, test=40),
        learn_teacher=two,
        learn=two,
        score_batch=16,
    )

    def go(config):
        name = class_discovery.__name__
        with compiled_quickly():
            results = run.execute(class_discovery, name, "smoke", config, tmp_path / "run")
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
