"""One head or two: stages and what they depend on, gradients compared, claims on made artefacts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import dual_head
from experiments.distillation.common.classifiers import classifier
from experiments.distillation.parts import conflict, dual_arms, dual_report
from experiments.distillation.parts.dual_arms import ARMS
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import replicated
from kd_jax.launch.stages import Training
from kd_jax.losses.classification import cross_entropy
from kd_jax.models.mlp import MLPConfig
from kd_jax.trees import flatten
from kd_jax.types import Context, Output, Term, stateless

KEY = jax.random.key(0)
STUDENT = MLPConfig(inputs=16, widths=(6,), classes=3)


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_a_stage_a_kind(preset):
    config = dual_head.PRESETS[preset]
    taught = ("teacher", "teacher_outputs")
    expected = {"teacher": (), "teacher_outputs": ("teacher",)}
    expected |= {name: () if name == "ce" else taught for name in config.methods}
    one = tuple(n for n in ("kd", "binary_one", "norm_one") if n in config.methods)
    expected["whole"] = (*taught, *one)
    assert outline(dual_head, config) == expected
    assert set(dual_head.PRESETS["laptop"].methods) == set(ARMS)


def test_what_students_depend_on():
    smoke = dual_head.PRESETS["smoke"]
    every = set(outline(dual_head, smoke))
    for change, expected in (
        ({"learn": dataclasses.replace(smoke.learn, rate=1e-4)}, {"ce", "norm_one", "whole"}),
        ({"teacher_widths": (8,)}, every - {"ce"}),
        ({"student_widths": (8,)}, {"ce", "norm_one", "whole"}),
        ({"seed": 3}, {"ce", "norm_one", "whole"}),
        ({"alpha": 0.5}, {"norm_one", "whole"}),
        ({"measurements": 3}, {"norm_one", "whole"}),
        ({"pictures": dataclasses.replace(smoke.pictures, images=500)}, every),
        ({"pictures": dataclasses.replace(smoke.pictures, folder="elsewhere")}, set()),
    ):
        assert changed(dual_head, smoke, dataclasses.replace(smoke, **change)) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "ce", "ce"), "methods: got ce ce, takes each once"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
        (("--alpha", "0"), "alpha: got 0.0, takes positive numbers"),
        (("--student-widths",), "student_widths: got none"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(dual_head, "smoke", *argv)


BATCH = {
    "inputs": jax.ShapeDtypeStruct((8, 4, 4, 1), np.uint8),
    "targets": jax.ShapeDtypeStruct((8,), np.int32),
    "weights": jax.ShapeDtypeStruct((8,), np.float32),
    "teacher_logits": jax.ShapeDtypeStruct((8, 3), np.float32),
}
SIZES = {"hidden": (6, 5), "head": (5, 3)}


@pytest.mark.parametrize("name", list(ARMS))
def test_the_losses_of_a_kind_and_what_is_trained_beside(name):
    arm, model = ARMS[name], classifier(STUDENT, 2)
    objective = dual_arms.objective(arm, model, dual_arms.How(1.0, 2.0, 5, "hidden_0"))

    def both(params, batch):
        aux, carry = objective.init(KEY, params, {}, batch)
        ctx = Context(KEY, jnp.int32(0))
        return aux, objective.loss({"model": params, "aux": aux}, carry, {}, batch, ctx)

    aux, output = jax.eval_shape(both, jax.eval_shape(model.init, KEY), BATCH)
    terms = {"labels": {"ce"}, "logits": {"kd"}}.get(arm.heads, {"ce", "kd"})
    assert set(output.terms) == terms and arm.compared == (len(terms) == 2)
    found = {path: x.shape for path, x in flatten(aux).items() if path.endswith("kernel")}
    heads = {
        "two": {"kd/head/kernel": (6, 3)},
        "dhkd": {"kd/head/kernel": (5, 3), "kd/hidden/kernel": (6, 5)},
    }
    assert found == heads.get(arm.heads, {})
    assert objective.whole_batch == (arm.heads == "dhkd")


def draws(step, rows):
    """[8, 2 students, ...], other images at every step."""
    generator = np.random.default_rng(step)
    return {
        "inputs": generator.integers(0, 255, (8, 2, 4, 4, 1)).astype(np.uint8),
        "targets": generator.integers(0, 3, (8, 2)).astype(np.int32),
        "weights": np.ones((8, 2), np.float32),
        "teacher_logits": generator.normal(size=(8, 2, 3)).astype(np.float32),
    }


def measured(objective, aux=None):
    """What is found of two students, and their weights."""
    model = classifier(STUDENT, 2)
    of_two = jax.vmap(model.init)(jax.random.split(KEY, 2))
    aux = {} if aux is None else jax.tree.map(lambda x: jnp.stack([x, x]), aux)
    params = jax.device_put({"model": of_two, "aux": aux}, replicated(make_mesh(MeshConfig())))
    batch = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in draws(0, ()).items()}
    training = Training(None, None, draws, batch, 8, 1, ())
    found = conflict.along(training, objective, classifier="layer_1/.*", every=1, batches=2)
    return found.run(params, {}, {}), of_two


@pytest.mark.slow
def test_cosines_of_each_student_are_of_its_own_weights_and_batches():
    model = classifier(STUDENT, 2)
    how = dual_arms.How(1.0, 2.0, 5, "hidden_0")
    objective = dual_arms.objective(ARMS["norm_one"], model, how)
    found, of_two = measured(objective, {"ce": {}, "kd": {}})

    def losses(params, batch):
        z = model.apply(params, batch).head.logits()
        d = jax.nn.sigmoid((z - batch["teacher_logits"]) / 2)
        kd = 4 * (0.5 * jnp.log(0.5 / d) + 0.5 * jnp.log(0.5 / (1 - d))).sum(-1).mean()
        return cross_entropy(z, batch["targets"]).mean(), kd

    for student in range(2):
        params = jax.tree.map(lambda x, i=student: x[i], of_two)
        for side, layer in (("backbone", "layer_0"), ("classifier", "layer_1")):
            cosines = []
            for step in range(2):
                batch = {n: jnp.asarray(x[:, student]) for n, x in draws(step, ()).items()}
                slopes = [
                    np.concatenate([np.ravel(x) for x in jax.tree.leaves(slope[layer])])
                    for slope in jax.jacrev(losses)(params, batch)
                ]
                cosines.append(slopes[0] @ slopes[1] / np.prod([np.linalg.norm(x) for x in slopes]))
            assert found[side][student] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert found["mean_backbone"] == pytest.approx(found["backbone"].mean())
    assert abs(found["backbone"][0] - found["backbone"][1]) > 1e-3


def test_at_rest_gradients_of_all_images_are_opposite():
    """ce + kd is least at z = 1, where each has a slope; nine images are one batch, filled up."""

    def apart(params, carry, frozen, batch, ctx):
        z = jnp.stack([x.sum() for x in jax.tree.leaves(params["model"])])
        w = batch["weights"].sum()
        pulls = {"ce": jnp.square(z).sum(), "kd": jnp.square(z - 2).sum()}
        return Output({name: Term(w * x, w) for name, x in pulls.items()})

    model = {
        "layer_0": jnp.array([[0.25, 0.75], [4.0, -1.0]]),
        "layer_1": jnp.array([[1.0], [3.0]]),
    }
    params = jax.device_put({"model": model, "aux": {}}, replicated(make_mesh(MeshConfig())))
    examples = {"targets": np.zeros(9, np.int32), "weights": np.ones(9, np.float32)}
    found = conflict.whole(stateless(apart), params, examples, classifier="layer_1")
    np.testing.assert_allclose(found["backbone"], [-1.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(found["classifier"], [-1.0, 1.0], rtol=1e-5)


def test_opposite_losses_and_a_head_of_its_own():
    model = classifier(STUDENT, 2)

    def opposite(params, carry, frozen, batch, ctx):
        z = model.apply(params["model"], batch).head.logits()
        total = cross_entropy(z, batch["targets"]).sum()
        return Output({"ce": Term(total, jnp.float32(8)), "kd": Term(total, jnp.float32(8), -3.0)})

    found, _ = measured(stateless(opposite))
    for side in ("classifier", "backbone"):
        np.testing.assert_allclose(found[side], -1.0, atol=1e-5)
    how = dual_arms.How(1.0, 2.0, 5, "hidden_0")
    head = {"kernel": jnp.arange(18.0).reshape(6, 3), "bias": jnp.zeros(3)}
    found, _ = measured(
        dual_arms.objective(ARMS["norm_two"], model, how), {"ce": {}, "kd": {"head": head}}
    )
    assert found["classifier"].tolist() == [0.0, 0.0]
    assert np.abs(found["backbone"]).min() > 1e-3


def made(accuracy, classifier=0.0, backbone=0.0, compared=True):
    """A kind's artefact: two students; gradients at the start do not count."""
    rows = {"9/test/accuracy": np.array(accuracy), "9/test/nll": np.array([0.5, 0.6])}
    rows["9/test/predicted"] = np.zeros((2, 3), np.uint8)
    history = [{"step": 0}, {"step": 4}, {"step": 9}]
    if compared:
        for point, more in zip(history, (9.0, -0.01, 0.01), strict=True):
            point["gradients/mean_backbone"] = backbone
            for side, x in (("classifier", classifier), ("backbone", backbone)):
                rows[f"{point['step']}/gradients/{side}"] = x + more + np.array([0.0, 0.001])
    return Made({"steps": 9}, rows, history)


def artefacts(one, dhkd, head, body):
    alone = made([80.0, 80.5], compared=False)
    return {
        "teacher": made([85.0], compared=False),
        "ce": made([81.0, 81.4], compared=False),
        "binary_alone": alone,
        "norm_alone": alone,
        "binary_one": made(one),
        "norm_one": made(one, head, body),
        "norm_dhkd": made(dhkd, backbone=0.3),
        "whole": Made(
            rows={f"norm_one/{side}": np.array([-0.9, -0.8]) for side in dual_report.SIDES}
        ),
    }


def test_claims_on_artefacts_made_by_hand(tmp_path):
    methods = ("ce", "binary_alone", "binary_one", "norm_alone", "norm_one", "norm_dhkd")
    found = artefacts([79.0, 79.4], [82.0, 82.3], -0.4, 0.2)
    results = dual_report.results(methods, found, tmp_path)
    assert verdicts(dual_head, results) == ["holds"] * 5
    assert results.values["teacher"] == 85.0
    assert results.values["cosines"]["norm_one"]["classifier"][-1] == pytest.approx([-0.39, -0.389])
    rows = {row["student of"]: row for row in results.tables[0].rows}
    assert rows["DHKD"]["points above CE"].estimate == pytest.approx(0.95)
    rows = {row["student of"]: row for row in results.tables[1].rows}
    assert rows["DHKD"]["classifier"] == "two heads" and len(rows["DHKD"]) == 3
    one = rows["CE + BinaryKL-Norm, one head"]
    assert one["backbone"].estimate == pytest.approx(0.2005)
    assert one["classifier, all images, end"].estimate == pytest.approx(-0.85)
    assert set(results.plots) == {"gain", "classifier", "backbone"}
    assert all(path.exists() for path in results.plots.values())
    # Between the two alone is no degeneration, and above the worse of them no gain.
    turned = artefacts([80.4, 80.9], [80.7, 81.1], 0.4, -0.2)
    results = dual_report.results(methods, turned, tmp_path)
    assert verdicts(dual_head, results) == ["fails"] * 5


def test_kinds_that_were_not_run_are_not_tested(tmp_path):
    found = artefacts([79.0, 79.4], [82.0, 82.3], -0.4, 0.2)
    results = dual_report.results(("norm_one",), found, tmp_path)
    expected = ["not tested"] * 3 + ["holds"] * 2
    assert verdicts(dual_head, results) == expected and "gain" not in results.plots
    results = dual_report.results(("ce",), found, tmp_path)
    assert verdicts(dual_head, results) == ["not tested"] * 5 and not results.plots
