"""Mixup in distillation: stages, mixing of students side by side, claims on endings by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, compiled_quickly, outline, refusal, verdicts

from experiments.distillation import mixup_kd
from experiments.distillation.parts import mixup_measures
from kd_jax.types import TrainState

SMOKE, LAPTOP = mixup_kd.PRESETS["smoke"], mixup_kd.PRESETS["laptop"]
KINDS = [f"{t}_{loss}" for t in ("plain", "mixed") for loss in ("t1", "t4", "std")]


def test_a_stage_for_each_teacher_loss_and_mix():
    mixes = ("none", "partial", "full")
    expected = {"teacher_plain": (), "teacher_mixed": ()}
    expected |= {f"alone_{mix}": () for mix in mixes}
    expected |= {
        f"{kind}_{mix}": (f"teacher_{kind.split('_')[0]}",) for kind in KINDS for mix in mixes
    }
    assert outline(mixup_kd, LAPTOP) == expected


def test_what_a_stage_depends_on():
    every = set(outline(mixup_kd, LAPTOP))
    alone = {name for name in every if name.startswith("alone")}
    teachers = {"teacher_plain", "teacher_mixed"}
    for change, expected in (
        ({"learn": dataclasses.replace(LAPTOP.learn, rate=1e-4)}, every - teachers),
        ({"learn_teacher": dataclasses.replace(LAPTOP.learn_teacher, rate=1e-4)}, every - alone),
        ({"part": 0.2}, {name for name in every if name.endswith("partial")}),
        ({"teacher_widths": (9,)}, every - alone),
        ({"student_widths": (9,)}, every - teachers),
        ({"pictures": dataclasses.replace(LAPTOP.pictures, folder="elsewhere")}, set()),
        ({"seed": 11}, every),
    ):
        found = changed(mixup_kd, LAPTOP, dataclasses.replace(LAPTOP, **change))
        assert found == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--part", "1"), "part: got 1.0, takes a number between 0 and 1"),
        (("--losses", "t1", "t1"), "losses: got t1 t1, takes each once"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
        (("--teacher-widths", "0"), "teacher_widths"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(mixup_kd, "smoke", *argv)


@pytest.mark.slow
def test_batches_of_students_are_mixed_apart_and_alike_for_every_share():
    state = TrainState(jnp.int32(3), {}, {}, {}, jax.random.key(0))
    rows, students = 8, 2
    images = jnp.eye(rows).reshape(rows, 1, 1, 1, rows).repeat(students, 1)
    index = jnp.arange(rows)[:, None].repeat(students, 1)
    batch = {"inputs": images, "targets": index, "weights": jnp.ones((rows, students))}
    batch["index"] = index
    with compiled_quickly():
        found, later, full = (
            jax.jit(mixup_measures.mixing(unmixed))(state._replace(step=step), {}, batch)
            for unmixed, step in ((0.5, jnp.int32(3)), (0.5, jnp.int32(4)), (0.0, jnp.int32(3)))
        )
    x, y = np.asarray(found["inputs"]).reshape(rows, students, rows), found["soft_targets"]
    assert y.shape == (rows, students, 10)
    np.testing.assert_allclose(x, y[..., :rows])
    pure = x.max(-1) == 1
    assert (pure.sum(0) >= 4).all() and not pure.all()  # a row whose two images are one is pure too
    assert np.abs(x[:, 0] - x[:, 1]).max() > 0.5
    assert np.abs(x[:, 0] - later["inputs"].reshape(x.shape)[:, 0]).max() > 0.5
    # What is mixed at all is mixed as where all is.
    np.testing.assert_allclose(x[~pure], full["inputs"].reshape(x.shape)[~pure])


def ended(accuracy, entropies=None):
    """Of two seeds; the teachers' entropies where they are given."""
    rows = {
        f"5/test/{name}": np.array([accuracy, accuracy + 0.01])
        for name in ("accuracy", "nll", "predicted")
    }
    for name, x in (entropies or {}).items():
        rows[f"5/softness/{name}"] = np.array([x, x + 0.001])
    return Made(values={"steps": 5}, rows=rows)


def endings(config, accuracy, soft):
    """accuracy(kind, mix); soft: the mixup teacher's entropies, less the plain one's."""
    names = [f"{v}_{s}" for v in mixup_measures.VIEWS for s in mixup_measures.SOFTENED]
    found = {
        f"teacher_{t}": ended(85.0, dict.fromkeys(names, 0.5 + soft * (t == "mixed")))
        for t in config.teachers
    }
    kinds = ["alone", *(f"{t}_{loss}" for t in config.teachers for loss in config.losses)]
    return found | {f"{k}_{m}": ended(accuracy(k, m)) for k in kinds for m in config.mixes}


@pytest.mark.parametrize(("sign", "expected"), [(1, ["holds"] * 5), (-1, ["fails"] * 5)])
def test_claims_on_endings_made_by_hand(tmp_path, sign, expected):
    better = {"plain_t4": 0.5, "mixed_t4": -0.5, "mixed_t1": 0.5}
    mixes = {"none": 0.3, "partial": 0.3, "full": 0.0}

    def accuracy(kind, mix):
        return 80 + sign * (better.get(kind, 0.0) + mixes[mix])

    config = dataclasses.replace(LAPTOP, seeds=2)
    results = mixup_kd.report(config, endings(config, accuracy, 0.4 * sign), tmp_path)
    assert verdicts(mixup_kd, results) == expected
    cells = results.values["accuracy"]["mixed_t1"]
    assert cells["full"] == pytest.approx([80 + sign * 0.5, 80.01 + sign * 0.5])
    assert results.tables[0].rows[0]["student"] == "no teacher"
    assert set(results.plots) == {"accuracy", "changes", "entropy"}
    assert all(Path(path).exists() for path in results.plots.values())


def test_what_was_not_run_is_not_tested(tmp_path):
    config = dataclasses.replace(LAPTOP, teachers=("plain",), losses=("t1",), mixes=("none",))
    results = mixup_kd.report(config, endings(config, lambda k, m: 80.0, 0.4), tmp_path)
    assert verdicts(mixup_kd, results) == ["not tested"] * 5
    assert "changes" not in results.plots
