"""ND beside KD: stages and what they depend on, what is lost and measured, claims on artefacts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import nd_loss
from experiments.distillation.common import pictures
from experiments.distillation.common.classifiers import classifier
from experiments.distillation.parts import nd_report, nd_stages
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import plain
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.output_cache import About, write
from kd_jax.launch.precompute import data_hash
from kd_jax.launch.sharding import replicated
from kd_jax.launch.weights import from_arrays
from kd_jax.losses.divergences import forward_kl
from kd_jax.types import Context

KEY = jax.random.key(0)
SMOKE = nd_loss.PRESETS["smoke"]


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_a_stage_a_kind(preset):
    config = nd_loss.PRESETS[preset]
    taught = ("teacher", "teacher_outputs")
    expected = {"teacher": (), "teacher_outputs": ("teacher",), "class_means": taught}
    expected |= dict.fromkeys(config.methods, (*taught, "class_means"))
    assert outline(nd_loss, config) == expected
    assert set(nd_loss.PRESETS["laptop"].methods) == set(nd_stages.LABELS)


def test_what_students_depend_on():
    every = set(outline(nd_loss, SMOKE))
    for change, expected in (
        ({"learn": dataclasses.replace(SMOKE.learn, rate=1e-4)}, {"kd", "nd"}),
        ({"learn_teacher": dataclasses.replace(SMOKE.learn_teacher, rate=1e-4)}, every),
        ({"nd": 0.3}, {"nd"}),
        ({"mse": 0.3}, set()),
        ({"temperature": 2.0}, {"kd", "nd"}),
        ({"warm_up": 0.5}, {"kd", "nd"}),
        ({"pictures": dataclasses.replace(SMOKE.pictures, images=500)}, every),
        ({"pictures": dataclasses.replace(SMOKE.pictures, folder="elsewhere")}, set()),
    ):
        assert changed(nd_loss, SMOKE, dataclasses.replace(SMOKE, **change)) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "nd", "nd"), "methods: got nd nd, takes each once"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
        (("--nd", "0"), "nd: got 0.0, takes positive numbers"),
        (("--warm-up", "0"), "warm_up: got 0.0, takes a share above 0"),
        (("--student-widths", "8"), "got (32, 16), (8,), take the same last width"),
        (("--student-widths",), "take the same last width"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(nd_loss, "smoke", *argv)


def images(count):
    generator = np.random.default_rng(1)
    return {
        "inputs": generator.integers(0, 255, (count, 8, 8, 1)).astype(np.uint8),
        "targets": generator.integers(0, 10, count).astype(np.int32),
        "weights": np.ones(count, np.float32),
        "index": np.arange(count, dtype=np.int32),
    }


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", list(nd_stages.LABELS))
def test_what_a_kind_loses_beside_labels_and_kd(name):
    model = classifier(SMOKE.student, 2)
    how = nd_stages.How(0.5, 4.0, 10, "hidden_0", "hidden_1")
    objective = nd_stages.objective(name, model, how)
    generator = np.random.default_rng(2)
    batch = jax.tree.map(jnp.asarray, images(8)) | {
        "teacher_logits": jnp.asarray(generator.normal(size=(8, 10)), jnp.float32),
        "teacher_hidden_1": jnp.asarray(generator.normal(size=(8, 16)), jnp.float32),
    }
    frozen = {"means": jnp.asarray(generator.normal(size=(10, 16)), jnp.float32)}
    params = model.init(KEY)

    def terms(params, frozen, batch, step):
        aux, carry = objective.init(KEY, params, frozen, batch)
        both = {"model": params, "aux": aux}
        output = objective.loss(both, carry, frozen, batch, Context(KEY, step))
        return {name: term.value for name, term in output.terms.items()}

    found = jax.jit(terms)(params, frozen, batch, jnp.int32(5))
    output = model.apply(params, batch, taps=("hidden_0",))
    kl = forward_kl(output.head.logits(), batch["teacher_logits"], temperature=4.0).mean()
    # Half of the warm-up is over.
    assert found["kd"] == pytest.approx(0.5 * 16 * float(kl), rel=1e-4)
    f, t = np.asarray(output.taps["hidden_0"]), np.asarray(batch["teacher_hidden_1"])
    along = (f * unit(np.asarray(frozen["means"]))[np.asarray(batch["targets"])]).sum(1)
    norms = np.linalg.norm(f, axis=1)
    expected = {
        "mse": 0.5 * np.square(f - t).mean(),
        "cosine": 0.5 * (1 - along / norms).mean(),
        "nd": 0.5 * (1 - along / np.maximum(norms, np.linalg.norm(t, axis=1))).mean(),
    }
    assert set(found) == {"ce", "kd", name}
    if name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.slow
def test_features_of_each_student_and_class_means_of_the_teacher(tmp_path, monkeypatch):
    split = pictures.Split(images(60), images(40), images(8))
    monkeypatch.setattr(pictures, "load", lambda _: split)
    config = dataclasses.replace(SMOKE, score_batch=16)
    mesh = make_mesh(MeshConfig())
    model = classifier(config.student, 2)
    params = jax.vmap(model.init)(jax.random.split(KEY, 2))
    means = np.random.default_rng(3).normal(size=(10, 16)).astype(np.float32)
    placed = jax.device_put(({"model": params}, {"means": means}), replicated(mesh))
    found = nd_stages.along(config, config.student, 1).run(placed[0], {}, placed[1])
    for student in range(2):
        own = jax.tree.map(lambda x, i=student: x[i], params)
        f = np.asarray(model.apply(own, split.validation, taps=("hidden_0",)).taps["hidden_0"])
        cosines = (unit(f) * unit(means)[split.validation["targets"]]).sum(1)
        assert found["norm"][student] == pytest.approx(np.linalg.norm(f, axis=1).mean(), rel=1e-4)
        assert found["cosine"][student] == pytest.approx(cosines.mean(), abs=1e-5)
    assert found["mean_norm"] == pytest.approx(found["norm"].mean())

    # The teacher: its stored features are averaged by class, its own ones are measured alike.
    class Teacher(Artefact):
        def weights(self):
            return from_arrays({"teacher": classifier(config.teacher, 2).init(KEY)})

    teacher = Teacher("teacher", "of", tmp_path)
    stored = {
        "teacher_hidden_1": np.random.default_rng(4).normal(size=(60, 16)).astype(np.float32),
        "teacher_logits": np.zeros((60, 10), np.float32),
    }
    (tmp_path / "files").mkdir()
    write(tmp_path / "files", About("of", data_hash(split.train), ("hidden_1",)), [[stored]], 60)
    outputs = Artefact("teacher_outputs", "outputs", tmp_path)
    of_both = {"teacher": teacher, "teacher_outputs": outputs}
    stage = nd_stages.means(config, config.teacher, of_both)
    tree, values = stage.run()
    assert tree["means"].shape == stage.shapes["means"].shape
    for y in range(10):
        here = split.train["targets"] == y
        wanted = stored["teacher_hidden_1"][here].mean(0)
        np.testing.assert_allclose(tree["means"][y], wanted, rtol=1e-5, atol=1e-6)
    assert plain(values).keys() == {"norm", "cosine"} and values["norm"] > 0


def made(accuracy, norm, cosine):
    rows = {"9/test/accuracy": np.array(accuracy), "9/test/nll": np.array([0.5, 0.6])}
    rows["9/test/predicted"] = np.zeros((2, 3), np.uint8)
    history = []
    for step, share in ((0, 0.1), (9, 1.0)):
        point = {"step": step}
        for name, x in (("norm", norm), ("cosine", cosine)):
            rows[f"{step}/features/{name}"] = share * x + np.array([0.0, 0.01])
            point[f"features/mean_{name}"] = share * x + 0.005
        history.append(point)
    return Made({"steps": 9}, rows, history)


def artefacts(nd, others=("mse", "cosine")):
    rest = {name: made([81.0, 81.5], 5.0, 0.6) for name in others}
    means = Made({"norm": 9.0, "cosine": 0.95})
    kd = made([80.0, 80.6], 4.0, 0.4)
    return {"class_means": means, "teacher": made([85.0], 1.0, 1.0), "kd": kd, "nd": nd, **rest}


def test_claims_on_artefacts_made_by_hand(tmp_path):
    methods = ("kd", "mse", "cosine", "nd")
    results = nd_report.results(methods, artefacts(made([83.0, 83.4], 7.0, 0.8)), tmp_path)
    assert verdicts(nd_loss, results) == ["holds"] * 5
    assert results.values["ends"]["nd"]["norm"] == pytest.approx([7.0, 7.01])
    assert results.values["teacher"] == {"norm": 9.0, "cosine": 0.95, "accuracy": 85.0}
    rows = {row["student of"]: row for row in results.tables[0].rows}
    assert rows["KD + ND"]["test accuracy (%)"].estimate == pytest.approx(83.2)
    assert rows["teacher"]["length of features"] == 9.0
    assert set(results.plots) == {"norm", "cosine", "all"}
    assert all(path.exists() for path in results.plots.values())
    results = nd_report.results(methods, artefacts(made([79.0, 79.5], 3.0, 0.3)), tmp_path)
    assert verdicts(nd_loss, results) == ["fails"] * 5
    few = nd_report.results(("kd", "nd"), artefacts(made([83.0, 83.4], 7.0, 0.8), ()), tmp_path)
    assert verdicts(nd_loss, few) == ["holds", "not tested", "not tested", "holds", "holds"]
