"""Students of a teacher of another family: stages, exits, linear CKA, claims."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import ofa_hetero
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import classifier
from experiments.distillation.parts import cka
from kd_jax.launch import output_cache
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.run import stages_of
from kd_jax.objectives.distil import distil
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.types import Context

SMOKE = ofa_hetero.PRESETS["smoke"]
LAPTOP = ofa_hetero.PRESETS["laptop"]
BOTH = dataclasses.replace(SMOKE, families=("cnn", "mixer"), methods=LAPTOP.methods)


def test_who_learns_from_whom():
    found = outline(ofa_hetero, LAPTOP)
    teachers = ("teacher_cnn", "teacher_mixer")
    expected = dict.fromkeys(teachers, ()) | {f"{name}_outputs": (name,) for name in teachers}
    students = {}
    for family, teacher in (("cnn", "teacher_mixer"), ("mixer", "teacher_cnn")):
        students[f"{family}_ce"] = ()
        for method in ("kd", "hint", "ofa_10", "ofa_15", "ofa_20"):
            students[f"{family}_{method}"] = (teacher, f"{teacher}_outputs")
    assert found == expected | students | {"similarity": (*teachers, *students)}


def test_teachers_that_nothing_is_asked_of_are_not_made():
    teachers = [name for name in outline(ofa_hetero, SMOKE) if name.startswith("teacher")]
    assert teachers == ["teacher_cnn", "teacher_cnn_outputs"]
    alone = dataclasses.replace(SMOKE, methods=("ce",))
    assert ofa_hetero.teachers(alone) == ("cnn", "mixer")


def test_what_a_stage_depends_on():
    every = set(outline(ofa_hetero, BOTH))
    teachers = {name for name in every if name.startswith("teacher")}
    students = every - teachers
    taught = students - {"cnn_ce", "mixer_ce"}
    ofa = {f"mixer_{method}" for method in ofa_hetero.POWERS}
    more = dataclasses.replace
    for change, expected in (
        ({"learn": more(BOTH.learn, rate=1e-4)}, students),
        ({"learn_teacher": more(BOTH.learn_teacher, rate=1e-4)}, teachers | taught),
        ({"hint": 2.0}, {"cnn_hint", "mixer_hint", "similarity"}),
        ({"heads": 2}, ofa | {"similarity"}),
        ({"similar": 16}, {"similarity"}),
    ):
        assert changed(ofa_hetero, BOTH, more(BOTH, **change)) == expected, change


@pytest.mark.parametrize(
    ("family", "method", "made"),
    [
        ("cnn", "hint", {"hint": ["bias", "kernel"]}),
        ("mixer", "ofa_15", {"exits": ["exit_0"]}),
        ("cnn", "ofa_20", {"exits": ["exit_0", "exit_1"]}),
    ],
)
def test_students_are_trained_with_parts_of_their_own(family, method, made):
    student = getattr(BOTH.students, family)
    teacher = getattr(BOTH.teachers, ofa_hetero.OTHER[family])
    model, taps = classifier(student, 2), (ofa_hetero._middle(teacher),)
    parts = ofa_hetero._parts(BOTH, student, teacher, method)
    objective = distil(model, stored_teacher(), parts, teacher_policy=nothing)
    batch = pupils.batch_shapes(BOTH, 8)
    batch |= output_cache.shapes(classifier(teacher, 2), batch, taps)

    def loss(key, batch):
        params = model.init(key)
        aux, carry = objective.init(key, params, {}, batch)
        params = {"model": params, "aux": aux}
        output = objective.loss(params, carry, {}, batch, Context(key, jnp.zeros((), jnp.int32)))
        return aux, output.loss

    # Hints read as many places of the one as of the other.
    aux, value = jax.eval_shape(loss, jax.random.key(0), batch)
    assert {part: sorted(x) for part, x in aux.items() if x} == made
    assert value.shape == ()


def test_what_students_read_of_their_teacher():
    found = {f"teacher_{f}": Artefact(f"teacher_{f}", "", None, {}) for f in ofa_hetero.FAMILIES}
    columns = {
        stage.name: {x for x in stage.build(found).batch if x.startswith("teacher_")}
        for stage in stages_of(ofa_hetero, dataclasses.replace(BOTH, families=("mixer",)))
        if stage.name in ("mixer_ce", "mixer_kd", "mixer_hint")
    }
    logits = {"teacher_logits"}
    middle = {"teacher_block_1"}
    assert columns == {"mixer_ce": set(), "mixer_kd": logits, "mixer_hint": logits | middle}


def test_exits_of_a_student_in_the_laptop_preset():
    parts = ofa_hetero._parts(LAPTOP, LAPTOP.students.cnn, LAPTOP.teachers.mixer, "ofa_15")
    assert parts["exits"].student_taps == ("block_1", "block_2")
    parts = ofa_hetero._parts(LAPTOP, LAPTOP.students.mixer, LAPTOP.teachers.cnn, "hint")
    assert parts["hint"].student_taps == ("block_0",)
    assert parts["hint"].teacher_taps == ("block_1",)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "kd", "kd"), "methods: got kd kd, takes each once"),
        (("--families", "cnn", "cnn"), "families: got cnn cnn, takes each once"),
        (("--hint", "0"), "hint: got 0.0, takes positive"),
        (("--similar", "3"), "similar: got 3, takes at least 4"),
        (("--students.mixer.patch", "1"), "mixer.patch: got 1, takes 2"),
        (("--students.mixer.image", "8"), "students.mixer.image: got 8, takes half of 8"),
        (("--teachers.cnn.blocks", "1", "--teachers.cnn.widths", "8"), "cnn.blocks: got (1,)"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(ofa_hetero, "smoke", *argv)


def test_hsic_is_the_mean_over_four_different_examples():
    rng = np.random.default_rng(0)
    x, y = (cka.gram(rng.normal(size=(6, d))) for d in (3, 2))
    each = [
        x[i, j] * (y[i, j] + y[q, r] - 2 * y[i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    assert cka.hsic(x, y) == pytest.approx(np.mean(each), rel=1e-9)
    with pytest.raises(ValueError, match="got 3 examples, takes at least 4"):
        cka.hsic(x[:3, :3], y[:3, :3])


def test_cka_of_layers_that_are_the_same_and_of_layers_that_are_not():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 4, 4, 8))
    turn, _ = np.linalg.qr(rng.normal(size=(128, 128)))
    same = cka.gram(x), cka.gram(3 * x.reshape(64, -1) @ turn + 5)
    assert cka.linear_cka(*same) == pytest.approx(1.0, abs=1e-9)
    # Twice as many features as examples: without the correction it would be above a half.
    other = cka.gram(rng.normal(size=(64, 128)))
    assert abs(cka.linear_cka(same[0], other)) < 0.1


def endings(accuracies):
    """Students of two seeds by (family, method); CKA is 0.8 with their own family, else 0.3."""
    made = {
        f"{family}_{method}": _ending((x, x + 1.0))
        for family in ("cnn", "mixer")
        for method, x in accuracies.items()
    }
    layers = {}
    for name in made:
        for x in ("cnn", "mixer"):
            value = 0.8 if name.startswith(x) else 0.3
            layers[f"{name}/teacher_{x}"] = np.full((2, 3, 4), value) + [[[0.01]], [[0.0]]]
    made |= {f"teacher_{x}": _ending((80.0,)) for x in ("cnn", "mixer")}
    return made | {"similarity": Made(rows=layers)}


def _ending(accuracy):
    rows = {"accuracy": np.array(accuracy), "nll": np.ones(2), "predicted": np.ones((2, 3))}
    return Made({"steps": 7}, {f"7/test/{name}": x for name, x in rows.items()})


def report(accuracies, tmp_path, methods=LAPTOP.methods):
    config = dataclasses.replace(LAPTOP, methods=methods)
    return ofa_hetero.report(config, endings(accuracies), tmp_path)


def test_claims_on_accuracies_made_by_hand(tmp_path):
    good = {"ce": 78.0, "kd": 80.0, "hint": 79.0, "ofa_10": 80.5, "ofa_15": 81.0, "ofa_20": 80.0}
    results = report(good, tmp_path)
    assert verdicts(ofa_hetero, results) == ["holds"] * 5
    assert results.values["cka_of_labels"]["other"] == pytest.approx([0.31, 0.3])
    first, second = (table.rows for table in results.tables)
    assert first[0] == {
        "student": "(the teacher)",
        "Mixer to ResNet": 80.0,
        "ResNet to Mixer": 80.0,
    }
    assert first[5]["student"] == "OFA, power 1.5" and first[5]["mean"].estimate == 81.5
    assert len(second) == 12 and second[0]["teacher ResNet"].estimate == pytest.approx(0.805)
    assert all(path.exists() for path in results.plots.values())
    assert set(results.plots) == {"gain", "cka"}
    bad = good | {"ofa_15": 77.0, "hint": 82.0}
    verdict = verdicts(ofa_hetero, report(bad, tmp_path))
    assert verdict == ["fails"] * 4 + ["holds"]


def test_cka_that_is_higher_across_families_turns_the_claim(tmp_path):
    found = endings({"ce": 78.0})
    turned = {name: 1 - x for name, x in found["similarity"].rows.items()}
    config = dataclasses.replace(LAPTOP, methods=("ce",))
    results = ofa_hetero.report(config, found | {"similarity": Made(rows=turned)}, tmp_path)
    assert verdicts(ofa_hetero, results) == ["not tested"] * 4 + ["fails"]


def test_methods_that_were_not_run_are_not_tested(tmp_path):
    results = report({"kd": 80.0, "ofa_20": 81.0}, tmp_path, ("kd", "ofa_20"))
    assert verdicts(ofa_hetero, results) == ["not tested"] * 5
    assert results.plots == {}
