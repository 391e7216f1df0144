"""Masks: stages, what they depend on, passes and batches, counts of moved weights, claims."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.unlearning import saliency_masks
from experiments.unlearning.common import lm, qa
from experiments.unlearning.parts import masks, masks_report
from experiments.unlearning.parts.masks_report import retain_at
from kd_jax.attribution import scores
from kd_jax.attribution.masks import top_mask
from kd_jax.launch import stages as stages_lib
from kd_jax.launch import weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise

SMOKE = dataclasses.replace(
    saliency_masks.PRESETS["smoke"], labels=True, scores=("random", "wagle")
)
LAPTOP = saliency_masks.PRESETS["laptop"]


# Stages.


def test_stages():
    expected = {"finetune_0": (), "finetune_0_score": ("finetune_0",)}
    expected |= {"reference_0": ("finetune_0",), "retrain_0": (), "retrain_0_score": ("retrain_0",)}
    expected |= {f"{part}_gradient_0": ("finetune_0",) for part in ("forget", "retain")}
    gradients = ("forget_gradient_0", "retain_gradient_0")
    for name in ("dense", "labels"):
        expected |= {f"{name}_0": ("finetune_0", "reference_0"), f"{name}_0_score": (f"{name}_0",)}
    for name in ("random_80", "wagle_80", "salun"):
        expected[f"{name}_0"] = ("finetune_0", "reference_0", *gradients)
        expected[f"{name}_0_score"] = (f"{name}_0", "finetune_0", *gradients)
    assert outline(saliency_masks, SMOKE) == expected
    names = {f"{s}_{p}" for s in masks.SCORES for p in (5, 20, 80)} | {"dense", "labels", "salun"}
    assert LAPTOP.variants.keys() == names
    assert LAPTOP.variants["wagle_5"].ratio == 0.05 and LAPTOP.variants["salun"].ratio == 0.5


def test_ones_own_questions_have_no_answers_to_choose_from():
    data = dataclasses.replace(SMOKE.data, forget="a.jsonl", retain="b.jsonl")
    assert {*dataclasses.replace(SMOKE, data=data).variants} == {"dense", "random_80", "wagle_80"}


def test_what_a_stage_depends_on():
    every = {*outline(saliency_masks, SMOKE)}
    models = {"dense_0", "random_80_0", "wagle_80_0", "labels_0", "salun_0"}
    models |= {f"{name}_score" for name in models}
    slower = dataclasses.replace(SMOKE.unlearn, rate=1e-4)
    smaller = dataclasses.replace(SMOKE.unlearn, batch_size=8)
    for change, expected in (
        ({"gamma": 1e-3}, {"wagle_80_0", "wagle_80_0_score"}),
        ({"unlearn": slower}, models),
        ({"unlearn": smaller}, models | {"forget_gradient_0", "retain_gradient_0"}),
        ({"finetune": slower}, every),
        ({"seeds": 1, "microbatches": 2}, set()),
    ):
        found = changed(saliency_masks, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


def test_refusals():
    for argv, message in (
        (["--adapter.rank", "4"], "adapter.rank: got 4, takes 0: masks choose among all weights"),
        (["--ratios", "0.2", "1.0"], "takes different shares, 0.01 to 0.99"),
        (["--ratios", "0.2", "0.201"], "takes different shares"),
        (["--gamma", "0"], "gamma"),
        (["--scores", "wanda"], "scores"),
    ):
        assert message in refusal(saliency_masks, "smoke", *argv)


def build(config):
    """The trainings, built and planned from shapes alone."""
    found, made, mesh = {}, {}, make_mesh(MeshConfig())
    for stage in saliency_masks.stages(config):
        built = stage.build(found)
        shapes = built.weights.abstract if isinstance(built, stages_lib.Training) else None
        found[stage.name] = Artefact(stage.name, "", None, shapes)
        if isinstance(built, stages_lib.Training):
            made[stage.name] = built
        else:
            built.plan(mesh)
    return made


def test_every_field_is_read():
    # The folder is read where there are files, alpha where there are adapters: not here.
    qa.load.cache_clear()
    lm._words.cache_clear()
    unread = unread_fields(SMOKE, lambda config: build(config))
    assert {*unread} <= {"adapter.alpha", "data.folder"}


def test_masks_are_frozen_and_shaped_like_the_model():
    made = build(SMOKE)
    model = made["finetune_0"].weights.abstract
    mask = made["wagle_80_0"].frozen.abstract["mask"]
    assert jax.tree.map(lambda x: x.shape, mask) == jax.tree.map(lambda x: x.shape, model)
    assert {x.dtype for x in jax.tree.leaves(mask)} == {jnp.dtype(bool)}
    assert made["dense_0"].frozen is None and made["labels_0"].frozen is None
    plan = stages_lib.placed("salun_0", made["salun_0"], make_mesh(MeshConfig()))
    assert plan.batch["forget"]["inputs"].shape == (16, 6, 64)


def test_a_pass_meets_each_row_once_and_padding_has_no_weight():
    training = build(SMOKE)["retain_gradient_0"]
    batches = [training.batches(step, slice(0, 16)) for step in range(training.steps)]
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, [*range(40), *[-1] * 8])
    assert not batches[-1]["weights"][8:].any() and batches[-1]["weights"][:8].any()


def test_answers_to_choose_from_are_the_questions_own():
    training = build(SMOKE)["labels_0"]
    batch = training.batches(1, slice(0, 16))["forget"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), training.batch["forget"])
    questions = qa.load(SMOKE.data).forget
    tokenizer = lm.open_language(None, SMOKE.decoder, SMOKE.data, 0).tokenizer()
    for row, number in ((0, batch["index"][0]), (9, batch["index"][9])):
        record = questions[int(number)]
        for i, answer in enumerate([record["answer"], *record["perturbed_answer"]]):
            chosen = batch["targets"][row, i][batch["weights"][row, i] == 1]
            assert tokenizer.decode(chosen, skip_special=True) == f" {answer}"


# Masks and counts.

TREES = [
    {
        "a": jax.random.normal(jax.random.key(i), (6, 4)),
        "b": jax.random.normal(jax.random.key(i), (5,)),
    }
    for i in range(3)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", masks.SCORES)
def test_a_mask_is_made_where_it_is_read(name):
    theta, forget, retain = TREES
    expected = {
        "random": scores.uniform(jax.random.fold_in(jax.random.key(7), 1), theta),
        "magnitude": theta,
        "saliency": forget,
        "wagle": scores.wagle(theta, forget, retain, gamma=0.5),
    }[name]
    parts = map(weights.from_arrays, TREES)
    made = masks.mask(name, *parts, ratio=0.4, gamma=0.5, seed=7)
    mask = materialise(made, make_mesh(MeshConfig()))
    wanted = top_mask(expected, ratio=0.4)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, mask, wanted))
    assert sum(int(x.sum()) for x in jax.tree.leaves(mask)) == 11


def test_a_weight_has_moved_if_a_bit_has():
    before = {"a": jnp.array([0.0, 1.0, 2.0, 3.0]), "b": jnp.array([1.0, 2.0], jnp.bfloat16)}
    after = {"a": jnp.array([-0.0, 1.0, 2.5, 3.0]), "b": jnp.array([1.0, 2.5], jnp.bfloat16)}
    mask = {"a": jnp.array([False, True, True, False]), "b": jnp.array([True, False])}
    assert masks.moved(before, after, mask) == {"moved_inside": 1, "moved_outside": 2}
    assert masks.moved(before, before, mask) == {"moved_inside": 0, "moved_outside": 0}


# Claims.


def test_what_is_kept_at_a_level():
    line = ([0.9, 0.8, 0.4, 0.0], [1.0, 0.9, 0.5, 0.3])
    assert retain_at(line, 0.5) == pytest.approx(0.9 - 0.75 * 0.4)
    assert retain_at(line, 0.4) == pytest.approx(0.5)
    assert retain_at(line, 0.9) == 1.0
    assert np.isnan(retain_at(([0.9, 0.5], [1.0, 0.9]), 0.2))


def made(kept, ends, outside=0):
    """Runs of three seeds that fall to a tenth, keeping so much at a fifth; scores at the end."""
    variants = masks_report.variants(tuple(masks.SCORES), (0.2, 0.8), labels=True)
    found = {}
    for seed in range(3):
        spread = 0.001 * seed
        for name in ("finetune", "retrain", *variants):
            forget, retain = ends.get(name, (0.1, 0.8))
            values = {"forget_probability": forget + spread, "retain_probability": retain + spread}
            values |= {"moved_inside": 3, "moved_outside": outside, "retain_utility": retain}
            loss = -np.log([[forget, forget + 1e-3], [retain, retain + 1e-3]])
            rows = {"forget_loss": loss[0], "retain_loss": loss[1]}
            found[f"{name}_{seed}_score"] = Made(values, rows)
            points = [(0.9, 0.9), (0.18, kept.get(name, 0.5) + spread**2), (0.09, 0.1)]
            found[f"{name}_{seed}"] = Made(
                history=[
                    {"step": i, "answers/forget_probability": f, "answers/retain_probability": r}
                    for i, (f, r) in enumerate(points)
                ]
            )
    return variants, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "ends", "outside", "expected"),
    [
        ({"wagle_80": 0.7}, {"salun": (0.1, 0.8), "labels": (0.4, 0.5)}, 0, ["holds"] * 5),
        ({"wagle_80": 0.4}, {"salun": (0.4, 0.5), "labels": (0.1, 0.8)}, 1, ["fails"] * 5),
        ({"wagle_20": 0.7}, {}, 0, ["fails"] * 4 + ["holds"]),  # no difference at all
    ],
)
def test_claims_on_artefacts_made_by_hand(tmp_path, kept, ends, outside, expected):
    variants, found = made(kept, ends, outside)
    results = masks_report.results(variants, range(3), found, tmp_path)
    assert verdicts(saliency_masks, results) == expected
    assert verdicts(saliency_masks, results, "smoke") == ["not tested"] * 5
    assert results.values["kept_at_equal_forgetting"]["dense"][0] == pytest.approx(0.5)
    names = {f"{x}_{p}" for x in ("trade_off", "forget_probability") for p in (20, 80)}
    assert names | {"kept_at_equal_forgetting"} <= {*results.plots}
    rows = {row["weights"]: row for row in results.tables[0].rows}
    assert rows["WAGLE 20%"]["moved outside the mask"] == 3 * outside
    assert "weights moved" not in rows["all weights"]


@pytest.mark.slow
def test_of_one_seed_or_without_a_variant_there_is_nothing_to_judge(tmp_path):
    variants, found = made({"wagle_80": 0.7}, {})
    results = masks_report.results(variants, range(1), found, tmp_path)
    assert verdicts(saliency_masks, results) == ["not tested"] * 4 + ["holds"]
    few = {name: variants[name] for name in ("dense", "wagle_80")}
    results = masks_report.results(few, range(3), found, tmp_path)
    assert verdicts(saliency_masks, results) == ["holds", *["not tested"] * 3, "holds"]


@pytest.mark.slow
def test_a_run_that_never_forgets_decides_nothing(tmp_path):
    variants, found = made({"wagle_80": 0.7}, {})
    start = found["wagle_80_1"].history[0]
    found["wagle_80_1"] = Made(history=[start | {"step": i} for i in range(3)])
    results = masks_report.results(variants, range(3), found, tmp_path)
    assert verdicts(saliency_masks, results)[:3] == ["inconclusive"] * 3
