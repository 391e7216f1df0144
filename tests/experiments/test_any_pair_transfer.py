"""Transfer between any two models: stages, what they depend on, claims on made-up endings."""

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

from experiments.distillation import any_pair_transfer
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import pool
from experiments.distillation.parts.pool import ARMS, MEMBERS, SIZES
from kd_jax.launch import run, weights
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise

SMOKE, LAPTOP = (any_pair_transfer.PRESETS[name] for name in ("smoke", "laptop"))


@pytest.mark.parametrize("config", [SMOKE, LAPTOP], ids=["smoke", "laptop"])
def test_stages_of_the_presets(config):
    expected = dict.fromkeys(config.members, ()) | {"flips": config.members}
    sizes = [size for size in SIZES if any(name.startswith(size) for name in config.members)]
    expected |= {f"{arm}_{size}": config.members for arm in config.arms for size in sizes}
    assert outline(any_pair_transfer, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(any_pair_transfer, LAPTOP))
    transfers = {f"{arm}_{size}" for arm in ARMS for size in SIZES}
    narrow = {name for name in MEMBERS if MEMBERS[name].size == "narrow"}
    for change, expected in (
        ({"pictures": dataclasses.replace(LAPTOP.pictures, folder="elsewhere")}, set()),
        ({"decay": 0.9}, {"mcl_narrow", "mcl_wide"}),
        ({"learn": dataclasses.replace(LAPTOP.learn, rate=1e-2)}, transfers),
        ({"narrow": 8}, narrow | transfers | {"flips"}),
        ({"shared": 500}, every),
        ({"seed": 3}, every),
    ):
        config = dataclasses.replace(LAPTOP, **change)
        assert changed(any_pair_transfer, LAPTOP, config) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--members", "wide_all"), "members: got 1, takes at least two"),
        (("--members", "wide_all", "wide_all"), "members: got wide_all wide_all, takes each once"),
        (("--shared", "1000"), "shared: got 1000, takes fewer than pictures.images, 1000"),
        (("--decay", "1"), "decay: got 1.0, takes 0 <= decay < 1"),
        (("--every", "0"), "every"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(any_pair_transfer, "smoke", *argv)


def test_what_members_learn():
    targets = np.array([9, 0, 3, 7, 4, 5])
    examples = {"inputs": np.arange(6), "targets": targets, "index": np.arange(6)}
    for learned, expected in (
        ("all", [0, 1, 2, 3, 4, 5]),
        ("low", [0, 1, 2, 4]),
        ("high", [0, 1, 3, 5]),
        ("none", [0, 1]),
    ):
        found = pool.known(examples, 2, learned)
        assert found["inputs"].tolist() == expected
        assert found["index"].tolist() == list(range(len(expected)))
    # As many epochs of 1000 images, and of 3000 of 5000.
    found = [pool.steps(learned, 500, 1000, 5000) for learned in ("all", "low", "high", "none")]
    assert found == [500, 300, 300, 100]


def test_students_begin_as_their_members():
    trees = [{"model": {"w": np.array([[i, 0.0], [i, 1.0]])}} for i in (3.0, 5.0)]
    found = pool.chosen([weights.from_arrays(x) for x in trees], [(1, 0), (0, 1), (1, 1)])
    made = materialise(found, make_mesh(MeshConfig()))
    assert made["w"].tolist() == [[5, 0], [3, 1], [5, 1]]
    names = pool.pairs(("narrow_few", "wide_all", "wide_few"), "wide")
    assert [tuple(pair) for pair in names] == [
        ("wide_all", "narrow_few"),
        ("wide_all", "wide_few"),
        ("wide_few", "narrow_few"),
        ("wide_few", "wide_all"),
    ]


def artefacts(gains, positive=5.0):
    """Members of accuracies 80 to 85; each student gains gains[arm] by the sign of the gap."""
    accuracy = {name: 80.0 + i for i, name in enumerate(MEMBERS)}
    both = np.array([0.0, 0.01])  # two pools
    found = {name: ended(None, np.array([x, x])) for name, x in accuracy.items()}
    found["flips"] = Made(rows={"positive": np.full((2, 6, 6), positive) * ~np.eye(6, dtype=bool)})
    for arm, (weaker, stronger) in gains.items():
        for size in SIZES:
            pairs = pool.pairs(tuple(MEMBERS), size)
            start = np.array([accuracy[pair.student] for pair in pairs])
            better = np.array([accuracy[pair.teacher] for pair in pairs]) > start
            gain = np.where(better, stronger, weaker) + both[:, None]
            found[f"{arm}_{size}"] = ended(np.tile(start, 2), (start + gain).reshape(-1))
    return found


def ended(before, after):
    rows = {"7/test/accuracy": after, "7/test/nll": after, "7/test/predicted": after}
    return Made({"steps": 7}, rows | ({} if before is None else {"0/test/accuracy": before}))


GOOD = {"kl": (-1.0, 1.0), "xe": (-0.5, 1.0), "mcl": (-0.2, 1.0), "dp": (0.2, 1.0)}


def report(gains, tmp_path, **how):
    config = dataclasses.replace(LAPTOP, seeds=2, seed=0, arms=tuple(gains))
    return any_pair_transfer.report(config, artefacts(gains, **how), tmp_path)


def test_claims_on_artefacts_made_by_hand(tmp_path):
    found = report(GOOD | {"dp_free": (0.1, 0.9)}, tmp_path)
    assert verdicts(any_pair_transfer, found) == ["holds"] * 5
    assert all(Path(path).exists() for path in found.plots.values())
    (row, *_) = found.tables[0].rows
    assert row["from weaker teachers"].estimate == pytest.approx(-0.995)
    assert row["from stronger teachers"].estimate == pytest.approx(1.005)
    assert row["pairs that gain, %"] == 50.0
    bad = {"kl": (0.1, 1.0), "mcl": (0.1, 1.0), "dp": (-0.2, 0.1), "dp_free": (1.0, 1.0)}
    found = report(bad, tmp_path, positive=1.0)
    assert verdicts(any_pair_transfer, found) == ["fails"] * 5


def test_an_arm_that_was_not_run_is_not_tested(tmp_path):
    found = report({"kl": (0.0, 0.0)}, tmp_path)
    assert verdicts(any_pair_transfer, found) == ["holds"] + ["not tested"] * 4


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field(tmp_path):
    two = Learning(rate=1e-3, steps=2, batch_size=8)
    config = dataclasses.replace(
        SMOKE,
        members=("narrow_all", "narrow_few"),
        arms=("mcl",),
        pictures=Pictures(images=60, validation=20, test=40),
        shared=20,
        learn_teacher=two,
        learn=two,
        score_batch=16,
    )

    def go(config):
        name = any_pair_transfer.__name__
        with compiled_quickly():
            results = run.execute(any_pair_transfer, name, "smoke", config, tmp_path / "run")
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
