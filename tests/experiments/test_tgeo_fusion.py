"""Trilateral fusion: who is misled on what, the steps of the arms, claims on endings by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts
from support.linear import CLASSES, batch_of, linear_model

from experiments.distillation import tgeo_fusion
from experiments.distillation.parts import fusion_report, fusion_stages
from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.types import Context

SMOKE, LAPTOP = tgeo_fusion.PRESETS["smoke"], tgeo_fusion.PRESETS["laptop"]
WORLDS = ("scattered", "gathered")
ARMS = ("fixed_0", "fixed_0_3", "fixed_0_5", "fixed_0_7", "fixed_1", "correct", "joint", "learned")


def test_a_stage_for_each_world_and_alpha():
    expected = {}
    for world in WORLDS:
        expected |= {f"{world}_teacher": (), f"{world}_said": (f"{world}_teacher",)}
        expected |= {f"{world}_{arm}": (f"{world}_said",) for arm in ARMS}
    assert outline(tgeo_fusion, LAPTOP) == expected


def test_what_a_stage_depends_on():
    every = set(outline(tgeo_fusion, LAPTOP))
    first = {f"{world}_{x}" for world in WORLDS for x in ("teacher", "said")}
    fused = {f"{world}_{x}" for world in WORLDS for x in ("joint", "learned")}
    fusion = dataclasses.replace(LAPTOP.learn_fusion, rate=1e-4)
    for change, expected in (
        ({"learn": dataclasses.replace(LAPTOP.learn, rate=1e-4)}, every - first),
        ({"learn_teacher": dataclasses.replace(LAPTOP.learn_teacher, rate=1e-4)}, every),
        ({"learn_fusion": fusion}, fused),
        ({"lookahead": 0.2}, {f"{world}_learned" for world in WORLDS}),
        ({"wrong": 0.2}, every),
        ({"copies": 2}, every),
        ({"other_images": 200}, every),
        ({"pictures": dataclasses.replace(LAPTOP.pictures, folder="elsewhere")}, set()),
    ):
        found = changed(tgeo_fusion, LAPTOP, dataclasses.replace(LAPTOP, **change))
        assert found == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--wrong", "0"), "wrong: got 0.0, takes a number between 0 and 1"),
        (("--alphas", "0", "1.5"), "alphas: got (0.0, 1.5), takes numbers in [0, 1]"),
        (("--alphas", "0", "0"), "alphas: got 0.0 0.0, takes each once"),
        (("--other-images", "500"), "student_images, other_images: got 800 in all"),
        (("--learn-fusion.steps", "3"), "learn_fusion.steps: got 3, takes those of learn, 20"),
        (("--lookahead", "0"), "lookahead"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(tgeo_fusion, "smoke", *argv)


def test_images_are_apart_and_teachers_are_misled_where_it_is_said():
    images = SMOKE.cut
    sizes = [len(part["targets"]) for part in images]
    assert sizes == [300, 100, 200]
    seen = [{x.tobytes() for x in part["inputs"]} for part in images]
    assert not (seen[0] & seen[1] or seen[1] & seen[2])
    true = np.concatenate([images.train["targets"]] * 2 + [images.rest["targets"]])

    scattered = fusion_stages.misled(images, 0.3, 7, gathered=False, copies=2)
    assert scattered["index"].tolist() == list(range(800))
    wrong = scattered["targets"] != true
    assert wrong[:300].sum() == 90 and not wrong[600:].any()
    np.testing.assert_array_equal(scattered["targets"][:300], scattered["targets"][300:600])
    other = fusion_stages.misled(images, 0.3, 8, gathered=False, copies=2)
    assert (other["targets"] != scattered["targets"]).any()

    gathered = fusion_stages.misled(images, 0.3, 7, gathered=True, copies=2)
    wrong = gathered["targets"] != true
    kinds = np.unique(true[wrong])
    assert len(kinds) == 3 and (wrong == np.isin(true, kinds)).all()
    assert (gathered["targets"][:300] != gathered["targets"][300:600]).any()
    assert set(gathered["targets"]) <= set(range(10))
    # The pictures themselves were not touched.
    assert (SMOKE.cut.train["targets"] == true[:300]).all()


@pytest.mark.slow
def test_arms_weigh_label_and_teacher():
    model, batch = linear_model(), batch_of(8)
    params, teacher = (model.init(jax.random.key(i)) for i in (1, 2))
    s, t = (model.apply(p, batch).head.logits() for p in (params, teacher))
    ce = cross_entropy(s, batch["targets"])
    soft = 1.5**2 * forward_kl(s, t, temperature=1.5)
    right = np.asarray(t.argmax(-1) == batch["targets"])
    assert right.any() and not right.all()
    for objective, values in (
        (fusion_stages.fixed(model, model, 0.3), 0.3 * soft + 0.7 * ce),
        (fusion_stages.by_correctness(model, model), jnp.where(right, soft, ce)),
    ):
        own = {"model": params, "aux": {"ce": {}, "kd": {}, "either": {}}}
        context = Context(jax.random.key(0), jnp.int32(0))
        found = objective.loss(own, {}, {"teacher": teacher}, batch, context).loss
        np.testing.assert_allclose(found, np.average(values, weights=batch["weights"]), rtol=1e-5)


@pytest.mark.slow
def test_jointly_the_network_goes_towards_the_smaller_term():
    model = linear_model()
    params, teacher = (model.init(jax.random.key(i)) for i in (1, 2))
    frozen = {"teacher": teacher, "class_means": jnp.full((CLASSES, CLASSES), 1 / CLASSES)}
    batch = {"train": batch_of(8), "other": batch_of(8, seed=1)}
    learn = dataclasses.replace(SMOKE.learn, rate=1e-3, steps=100)
    fusion = dataclasses.replace(learn, rate=3e-2)
    step = fusion_stages.jointly(fusion_stages.fusing(model, model), learn, fusion)
    # From the teacher's own weights the soft term is 0, and the label's is not.
    state = step.init(jax.random.key(0), teacher, frozen, batch)
    apply, shares = jax.jit(step.apply), []
    for _ in range(20):
        state, metrics = apply(state, frozen, batch)
        shares.append(float(metrics["share"]))
    assert set(metrics) == {"loss", "inner", "share", "grad_norm"}
    assert shares[-1] > shares[0] + 0.1


def test_the_area_under_the_curve():
    right = np.array([True, True, False, False])
    assert fusion_report.auc(np.array([0.9, 0.8, 0.1, 0.2]), right) == 1.0
    assert fusion_report.auc(np.array([0.1, 0.8, 0.1, 0.9]), right) == 0.375
    assert np.isnan(fusion_report.auc(np.ones(2), np.ones(2, bool)))


def ended(accuracy, validation, shares=None):
    """Of two seeds and, where it is fused, four images."""
    rows = {
        f"5/{split}/{name}": np.array([x, x + 0.01])
        for split, x in (("test", accuracy), ("validation", validation))
        for name in ("accuracy", "nll", "predicted")
    }
    if shares is not None:
        rows["5/fusion/share"] = np.array([shares, shares])
    return Made(values={"steps": 5}, rows=rows)


def endings(worlds, accuracy, shares):
    right = np.array([[True, True, False, False]] * 2)
    found = {f"{world}_said": Made(rows={"right": right}) for world in worlds}
    for world in worlds:
        found |= {
            f"{world}_{arm}": ended(accuracy[arm], 70 + (arm == "fixed_0_3"))
            for arm in ARMS
            if arm not in ("joint", "learned")
        }
        found[f"{world}_joint"] = ended(80.0, 70.0, [0.5] * 4)
        found[f"{world}_learned"] = ended(accuracy["learned"], 70.0, shares)
    return found


@pytest.mark.parametrize(
    ("learned", "shares", "expected"),
    [
        (81.0, [0.9, 0.8, 0.1, 0.2], ["holds"] * 5),
        (79.0, [0.1, 0.2, 0.8, 0.9], ["fails"] * 5),
    ],
)
def test_claims_on_endings_made_by_hand(tmp_path, learned, shares, expected):
    # The best on test images is not the one that is best on validation images.
    accuracy = dict.fromkeys(ARMS, 80.0) | {"fixed_1": 85.0, "learned": learned}
    found = endings(WORLDS, accuracy, shares)
    results = tgeo_fusion.report(LAPTOP, found, tmp_path)
    assert verdicts(tgeo_fusion, results) == expected
    assert results.values["gathered"]["best"] == "fixed_0_3"
    assert results.values["gathered"]["right"]["learned"] == pytest.approx(
        [np.mean(shares[:2])] * 2
    )
    assert results.values["scattered"]["wrong_images"] == [50.0, 50.0]
    assert set(results.plots) == {f"{w}_{x}" for w in WORLDS for x in ("accuracy", "alphas")}
    assert all(Path(path).exists() for path in results.plots.values())


def test_what_was_not_run_is_not_tested(tmp_path):
    config = dataclasses.replace(LAPTOP, worlds=("gathered",), methods=("correct",))
    found = endings(config.worlds, dict.fromkeys(ARMS, 80.0), [0.5] * 4)
    results = tgeo_fusion.report(config, found, tmp_path)
    assert verdicts(tgeo_fusion, results) == ["not tested"] * 5
    assert set(results.plots) == {"gathered_accuracy"}
