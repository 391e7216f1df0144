"""Students of an accurate and a robust teacher: stages, attacks on a linear model, claims."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import mtard_robust
from experiments.distillation.common.classifiers import classifier
from experiments.distillation.parts import attacks, mtard_report
from experiments.distillation.parts.attacks import Attack
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.run import stages_of
from kd_jax.launch.stages import placed
from kd_jax.models.mlp import MLPConfig
from kd_jax.types import TrainState

SMOKE = mtard_robust.PRESETS["smoke"]
LAPTOP = mtard_robust.PRESETS["laptop"]
TEACHERS = ("accurate_teacher", "robust_teacher")


def test_who_learns_from_whom():
    found = outline(mtard_robust, LAPTOP)
    students = {"labels": (), "robust": ("robust_teacher",)}
    students |= dict.fromkeys(("halves", "shares", "both"), TEACHERS)
    scores = {f"{name}_scored": (name,) for name in students} | {"teachers_scored": TEACHERS}
    assert found == dict.fromkeys(TEACHERS, ()) | students | scores


def test_what_a_stage_depends_on():
    every = set(outline(mtard_robust, SMOKE))
    students = {"halves", "both", "halves_scored", "both_scored"}
    scored = {name for name in every if name.endswith("_scored")}
    teachers = {"robust_teacher", "teachers_scored"}
    more = dataclasses.replace
    for change, expected in (
        ({"learn": more(SMOKE.learn, rate=1e-4)}, students),
        ({"learn_teacher": more(SMOKE.learn_teacher, rate=1e-4)}, every),
        ({"attack": more(SMOKE.attack, steps=3)}, every - {"accurate_teacher"}),
        ({"attack": more(SMOKE.attack, test_steps=5)}, scored),
        ({"share_rate": 0.1}, {"both", "both_scored"}),
        ({"temperature_rate": 0.1}, {"both", "both_scored"}),
        ({"seed": 5}, students),
        ({"student": (8,)}, students),
    ):
        assert changed(mtard_robust, SMOKE, more(SMOKE, **change)) == expected, change
    assert teachers < every


def test_every_method_has_a_training():
    config = dataclasses.replace(SMOKE, methods=LAPTOP.methods)
    teacher = jax.eval_shape(classifier(config.network(config.teacher), 2).init, jax.random.key(0))
    found = {
        name: Artefact(name, "", None, {"teacher": teacher, "teacher_state": {}})
        for name in TEACHERS
    }
    rates = {}
    for stage in stages_of(mtard_robust, config):
        if stage.name not in config.methods:
            continue
        training = stage.build(found)
        state = placed(stage.name, training, make_mesh(config.mesh)).state
        assert state.params["model"]["layer_0"]["kernel"].shape == (2, 64, 16)
        names = set(() if training.frozen is None else training.frozen.abstract)
        rates[stage.name] = names, [e.name for e in training.evaluations][2:]
    assert rates == {
        "labels": (set(), []),
        "robust": ({"teacher"}, []),
        "halves": ({"clean", "robust"}, []),
        "shares": ({"clean", "robust"}, ["balance"]),
        "both": ({"clean", "robust"}, ["balance"]),
    }


def test_teachers_weights_and_statistics_are_named_by_side():
    state = {"mean": jnp.ones(2)}
    trees = {
        "clean": {"teacher": {"w": jnp.zeros(3)}, "teacher_state": state},
        "robust": {"teacher": {"w": jnp.ones(3)}, "teacher_state": {}},
    }
    found = mtard_robust._frozen(
        {
            name: mtard_robust.Weights(tree, lambda placed, tree=tree: tree)
            for name, tree in trees.items()
        }
    )
    assert set(found.abstract) == {"clean", "clean_state", "robust"}
    made = found.make(found.abstract)
    assert made["robust"]["w"].tolist() == [1, 1, 1] and made["clean_state"] is state


LINEAR = MLPConfig(inputs=16, widths=(), classes=2)
PIXELS = np.array([140, 166, 115, 89], np.uint8)  # 0.05 and 0.15 above and below a half


def linear():
    """Class 0 for images brighter than a half: an attack must move every pixel past that."""
    kernel = jnp.stack([jnp.ones(16), -jnp.ones(16)], 1)
    return {"layer_0": {"kernel": kernel, "bias": jnp.array([-8.0, 8.0])}}


def pictures():
    images = np.broadcast_to(PIXELS[:, None, None, None], (4, 4, 4, 1))
    targets = np.array([0, 0, 1, 1], np.int32)
    rows = {
        "inputs": images, "targets": targets, "weights": np.ones(4, np.float32),
        "index": np.arange(4, dtype=np.int32),
    }  # fmt: skip
    return {name: jnp.asarray(x) for name, x in rows.items()}


@pytest.mark.slow
def test_attacks_that_reach_a_boundary_change_the_class():
    both = jax.tree.map(lambda x: jnp.stack([x, x]), linear())
    output = attacks._step(classifier(LINEAR, 2), 2, Attack(radius=0.1))(both, {}, {}, pictures())
    assert output.rows["clean"].shape == (4, 2)
    assert output.rows["clean"].all()
    assert np.array_equal(output.rows["robust"].T, [[False, True] * 2] * 2)


def test_batches_in_training_are_attacked_within_the_radius():
    model = classifier(LINEAR, 2)
    key = jax.random.key(0)

    def state(carry):
        return TrainState(jnp.zeros((), jnp.int32), {"model": linear()}, (), carry, key)

    beside = attacks.beside(model, Attack(radius=0.1))(state({"model": {}}), {}, pictures())
    clean = pictures()["inputs"] / np.float32(255)
    assert np.allclose(beside["inputs"], clean)
    moved = np.asarray(beside["attacked"]) - clean
    # Towards the other class, as far as is allowed: 5 steps of a quarter of the radius.
    assert np.allclose(moved, np.array([-0.1, -0.1, 0.1, 0.1])[:, None, None, None], atol=1e-6)
    instead = attacks.instead(model, Attack(radius=0.1))(state({}), {}, pictures())
    assert "attacked" not in instead
    assert np.array_equal(instead["inputs"], beside["attacked"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "both", "both"), "methods: got both both, takes each once"),
        (("--share-rate", "0"), "share_rate: got 0.0, takes positive"),
        (("--attack.radius", "0"), "radius: got 0.0, takes positive"),
        (("--student", "0"), "student"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(mtard_robust, "smoke", *argv)


def scores(clean, robust):
    return Made(rows={"clean": np.array(clean), "robust": np.array(robust)})


def found(accuracies):
    """Two seeds of each kind, and what the balances say along the way."""
    made = {
        f"{name}_scored": scores((clean, clean + 1), (robust, robust + 1))
        for name, (clean, robust) in accuracies.items()
    }
    rows = {f"{step}/balance/{name}": np.array([step / 10, step / 10 + 0.1])
            for step in (0, 20, 10) for name in ("share", "clean", "robust")}  # fmt: skip
    made |= dict.fromkeys(("shares", "both"), Made(rows=rows))
    return made | {"teachers_scored": scores((84.0, 75.0), (7.0, 55.0))}


def test_claims_on_accuracies_made_by_hand(tmp_path):
    good = {
        "labels": (60.0, 40.0), "robust": (62.0, 41.0), "halves": (80.0, 30.0),
        "shares": (78.0, 35.0), "both": (76.0, 40.0),
    }  # fmt: skip
    results = mtard_report.results(LAPTOP.methods, found(good), tmp_path)
    assert verdicts(mtard_robust, results) == ["holds"] * 5
    assert results.values["ends"]["both"]["mean"] == [58.0, 59.0]
    assert results.values["ends"]["both"]["gap"] == [36.0, 36.0]
    rows = results.tables[0].rows
    assert rows[0]["clean accuracy, %"] == 84.0 and rows[1]["clean less robust, points"] == 20.0
    assert [row["model"] for row in rows[2:]] == list(mtard_report.LABELS.values())
    assert all(path.exists() for path in results.plots.values())
    bad = good | {"labels": (90.0, 50.0), "robust": (90.0, 50.0), "halves": (80.0, 60.0),
                  "shares": (79.0, 50.0), "both": (70.0, 30.0)}  # fmt: skip
    results = mtard_report.results(LAPTOP.methods, found(bad), tmp_path)
    assert verdicts(mtard_robust, results) == ["fails"] * 5


def test_what_was_not_run_is_not_tested(tmp_path):
    results = mtard_report.results(("halves",), found({"halves": (80.0, 30.0)}), tmp_path)
    assert verdicts(mtard_robust, results) == ["not tested"] * 5
    assert set(results.plots) == {"plane", "accuracy"}


def test_points_along_the_way_are_in_the_order_of_steps():
    line = mtard_report._along(found({})["both"], "clean")
    assert line.x == [0, 10, 20] and line.y == pytest.approx([0.05, 1.05, 2.05])
