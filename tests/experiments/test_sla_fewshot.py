"""Few images in four rotations: stages, how networks are read, claims on endings made by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
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

from experiments.distillation import sla_fewshot
from experiments.distillation.parts import sla_report
from experiments.distillation.parts.views import ARMS
from kd_jax.launch import run
from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.joint_labels import aggregated
from kd_jax.models.mlp import MLPConfig, mlp
from kd_jax.steps import make_eval_step

SMOKE, LAPTOP = (sla_fewshot.PRESETS[name] for name in ("smoke", "laptop"))
NAME = sla_fewshot.__name__


def test_a_stage_for_each_way_data_set_and_number_of_images():
    assert outline(sla_fewshot, SMOKE) == {f"{m}_digits_10": () for m in SMOKE.methods}
    assert set(outline(sla_fewshot, LAPTOP)) == {
        f"{m}_{data}_{count}"
        for m in ARMS
        for data in ("fashion_mnist", "digits")
        for count in LAPTOP.per_class
    }


def test_what_a_stage_depends_on():
    every = set(outline(sla_fewshot, LAPTOP))
    for change, expected in (
        ({"folder": "elsewhere"}, set()),
        ({"learn": dataclasses.replace(LAPTOP.learn, rate=1e-4)}, every),
        ({"pool": 900}, every),
        ({"seeds": 3}, every),
        ({"widths": (4,)}, every),
    ):
        assert changed(sla_fewshot, LAPTOP, dataclasses.replace(LAPTOP, **change)) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--data", "digits", "digits"), "data: got digits digits, takes each once"),
        (("--methods", "joint", "joint"), "methods: got joint joint, takes each once"),
        (("--per-class", "0"), "per_class: got (0,), takes positive"),
        (("--widths", "0"), "widths: got (0,), takes positive"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
        (("--pool", "0"), "images: got 0, takes positive"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(sla_fewshot, "smoke", *argv)


def test_a_seed_draws_so_many_of_each_class():
    examples = {
        "inputs": np.arange(60),
        "targets": np.arange(60, dtype=np.int32) % 10,
        "index": np.arange(60, dtype=np.int32),
    }
    found = sla_fewshot.few(examples, 4, 3)
    assert np.bincount(found["targets"]).tolist() == [4] * 10
    assert len(set(found["inputs"])) == 40 and (found["inputs"] % 10 == found["targets"]).all()
    assert found["index"].tolist() == list(range(40))
    np.testing.assert_array_equal(found["inputs"], sla_fewshot.few(examples, 4, 3)["inputs"])
    assert np.any(found["inputs"] != sla_fewshot.few(examples, 4, 4)["inputs"])
    with pytest.raises(ValueError, match="per_class: got 7, a class of the pool has 6"):
        sla_fewshot.few(examples, 7, 3)


# A linear network of images 2 x 2, so that every logit is worked out by hand.
def linear(outputs):
    model = mlp(MLPConfig(inputs=4, widths=(), classes=outputs))
    rng = np.random.default_rng(outputs)
    params = {
        "layer_0": {"kernel": jnp.array(rng.normal(size=(4, outputs))), "bias": jnp.zeros(outputs)}
    }
    return model, params, np.asarray(params["layer_0"]["kernel"])


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 2, 2, 1)).astype(np.float32)
LABELS = np.array([2, 0, 9], np.int32)
BATCH = {
    "inputs": jnp.array(IMAGES),
    "targets": jnp.array(LABELS),
    "weights": jnp.array([1.0, 1.0, 0.0]),
}
TURNED = np.stack([np.rot90(IMAGES, k, (1, 2)) for k in range(4)], 1).reshape(12, 4)


def terms(name):
    model, params, kernel = linear(ARMS[name].outputs)
    step = make_eval_step(ARMS[name].objective(model))
    found = step({"model": params, "aux": {}}, {}, {}, BATCH).terms
    return {key: float(term.value) for key, term in found.items()}, TURNED @ kernel


def mean_nll(z, labels):
    """Of the first two images, the third being padding."""
    return float(cross_entropy(jnp.array(z), jnp.array(labels))[: 8 if len(z) == 12 else 2].mean())


@pytest.mark.slow
def test_what_each_way_is_trained_on():
    turns = np.tile(np.arange(4), 3)
    found, z = terms("alone")
    assert found == pytest.approx({"ce": mean_nll(z[::4], LABELS)}, rel=1e-5)
    found, z = terms("augmented")
    assert found == pytest.approx({"ce": mean_nll(z, np.repeat(LABELS, 4))}, rel=1e-5)
    found, z = terms("multi_task")
    expected = {"ce": mean_nll(z[:, :10], np.repeat(LABELS, 4)), "turn": mean_nll(z[:, 10:], turns)}
    assert found == pytest.approx(expected, rel=1e-5)
    found, z = terms("joint")
    both = np.repeat(LABELS, 4) * 4 + turns
    assert found == pytest.approx({"joint": mean_nll(z, both)}, rel=1e-5)


def test_how_each_network_is_read():
    for name, single, together in (
        ("alone", lambda z: z[::4], None),
        ("augmented", lambda z: z[::4], lambda z: z.reshape(3, 4, 10).mean(1)),
        ("multi_task", lambda z: z[::4, :10], None),
        ("joint", lambda z: z[::4, ::4], lambda z: aggregated(jnp.array(z), 4)),
    ):
        model, params, kernel = linear(ARMS[name].outputs)
        for read, expected in ((ARMS[name].single, single), (ARMS[name].together, together)):
            assert (read is None) == (expected is None)
            if read is not None and expected is not None:
                found = read(model).apply(params, BATCH).head.logits()
                np.testing.assert_allclose(found, expected(TURNED @ kernel), rtol=1e-4, atol=1e-5)


def test_the_distilled_network_has_a_head_of_its_own_for_views():
    sizes = sla_fewshot.sizes(SMOKE, "digits", "distilled")
    model = sla_fewshot.network(sizes, 1)
    objective = ARMS["distilled"].objective(model)
    batch = {**BATCH, "inputs": jnp.ones((3, 8, 8, 1), jnp.uint8)}
    params = jax.eval_shape(model.init, jax.random.key(0))
    aux, _ = jax.eval_shape(objective.init, jax.random.key(0), params, {}, batch)
    assert aux["joint"]["kernel"].shape == (SMOKE.widths[-1], 40)
    assert ARMS["distilled"].single(model) is model


TARGETS = np.repeat(np.arange(10), 2)


def student(accuracy, wrong=None):
    """All seeds alike but for a little; `wrong` of 6 is called 9."""
    predicted = np.stack([TARGETS, TARGETS])
    if wrong is not None:
        predicted[0, 12:14] = wrong
    rows = {}
    for split, value in accuracy.items():
        rows |= {
            f"7/{split}/accuracy": np.array([value, value + 0.1]),
            f"7/{split}/nll": np.ones(2),
            f"7/{split}/predicted": predicted,
        }
    return Made(values={"steps": 7}, rows=rows)


def made(clothes, digits, counts=(5, 20)):
    found = {}
    for data, ends in (("fashion_mnist", clothes), ("digits", digits)):
        for count in counts:
            for name, (single, together) in ends.items():
                own = {"test": single + count, f"{sla_report.TOGETHER}test": together + count}
                found[f"{name}_{data}_{count}"] = student(own, 9 if name == "augmented" else None)
    return found


GOOD = {
    "alone": (50.0, 0.0),
    "augmented": (45.0, 47.0),
    "multi_task": (50.0, 0.0),
    "joint": (51.0, 56.0),
    "distilled": (53.0, 0.0),
}
BAD = {
    "alone": (50.0, 0.0),
    "augmented": (55.0, 57.0),
    "multi_task": (50.0, 0.0),
    "joint": (49.0, 48.0),
    "distilled": (47.0, 0.0),
}


LABELS_OF = {"fashion_mnist": TARGETS, "digits": TARGETS}


def test_claims_on_endings_made_by_hand():
    found = sla_report.measured(LAPTOP.methods, (5, 20), LABELS_OF, made(GOOD, BAD))
    assert verdicts(sla_fewshot, found) == ["holds"] * 5
    accuracy = found.values["accuracy"]["fashion_mnist"]
    assert accuracy["joint"]["5"] == [56.0, 56.1]
    assert accuracy["joint_aggregated"]["20"] == [76.0, 76.1]
    assert accuracy["augmented_averaged"]["20"] == [67.0, 67.1]
    assert found.tables[0].rows[2]["data"] == "digits"
    mistaken = {row["trained and read as"]: row["6 called 9 (%)"] for row in found.tables[1].rows}
    assert mistaken["DA"].estimate == 50.0 and mistaken["class only"] == 0.0
    found = sla_report.measured(LAPTOP.methods, (5, 20), LABELS_OF, made(BAD, GOOD))
    assert verdicts(sla_fewshot, found) == ["fails"] * 5


def test_what_was_not_run_is_neither_tested_nor_drawn(tmp_path):
    found = sla_report.measured(("alone", "distilled"), (5, 20), LABELS_OF, made(GOOD, BAD))
    assert verdicts(sla_fewshot, found) == ["not tested", "holds"] + ["not tested"] * 3
    digits = {"digits": TARGETS}
    found = sla_report.results(("alone", "joint"), (5, 20), digits, made(GOOD, GOOD), tmp_path)
    assert verdicts(sla_fewshot, found) == ["not tested"] * 5
    assert set(found.plots) == {"accuracy_digits", "gains", "digits"}
    assert all(Path(file).exists() for file in found.plots.values())
    found = sla_report.measured(("augmented",), (5,), LABELS_OF, made(GOOD, GOOD))
    assert verdicts(sla_fewshot, found) == ["not tested"] * 5


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(
        SMOKE,
        methods=LAPTOP.methods,
        learn=dataclasses.replace(SMOKE.learn, steps=2),
        widths=(2,),
        score_batch=200,
    )

    def go(config):
        with compiled_quickly():
            found = run.execute(sla_fewshot, NAME, "smoke", config, tmp_path / "run")
        assert {c["verdict"] for c in found["claims"]} == {"not tested"}
        ends = found["values"]["accuracy"]["digits"]
        assert set(ends) == set(sla_report.LABELS)

    assert unread_fields(config, go) == []
