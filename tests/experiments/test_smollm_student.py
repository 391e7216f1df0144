"""A student cut from a larger model: stages, its weights, claims on endings made by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import smollm_student
from experiments.distillation.parts import smollm_report
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.models import decoder

SMOKE = smollm_student.PRESETS["smoke"]


@pytest.mark.parametrize("preset", smollm_student.PRESETS)
def test_stages(preset):
    expected = dict.fromkeys(("teacher", "alone", "half", "taught"), ())
    assert outline(smollm_student, smollm_student.PRESETS[preset]) == expected


def test_what_a_stage_depends_on():
    students = {"alone", "half", "taught"}
    for change, expected in (
        ({"learn": dataclasses.replace(SMOKE.learn, rate=1e-4)}, students),
        ({"depth": 2}, students),
        ({"text": dataclasses.replace(SMOKE.text, folder="elsewhere")}, set()),
        ({"decoder": dataclasses.replace(SMOKE.decoder, mlp=48)}, {"teacher", *students}),
    ):
        found = changed(smollm_student, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


@pytest.mark.slow
def test_the_student_starts_as_layers_of_the_teacher():
    config = dataclasses.replace(SMOKE, decoder=dataclasses.replace(SMOKE.decoder, depth=3))
    config = dataclasses.replace(config, depth=2)
    stages = {stage.name: stage for stage in smollm_student.stages(config)}
    training = stages["taught"].build({})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    start = materialise(training.weights, mesh, training.rules)
    whole = materialise(training.frozen, mesh)["teacher"]
    first, last = (whole["layers"][str(i)] for i in (0, 2))
    jax.tree.map(np.testing.assert_array_equal, start["layers"], {"0": first, "1": last})
    np.testing.assert_array_equal(start["embed"]["embedding"], whole["embed"]["embedding"])
    assert set(training.frozen_rules) == {"teacher"}
    assert stages["alone"].build({}).frozen is None


def test_a_model_that_is_not_there_and_too_many_layers_are_refused():
    assert "depth" in refusal(smollm_student, "smoke", "--depth", "0")
    config = dataclasses.replace(SMOKE, model="nowhere")
    training = smollm_student.stages(config)[1].build({})
    with pytest.raises(UserError, match="model: there is no nowhere; give --model"):
        materialise(training.weights, make_mesh(MeshConfig()), decoder.rules(SMOKE.decoder))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((3.0, 2.8, 2.9), ["holds", "holds"]), ((3.0, 3.2, 2.9), ["holds", "fails"])],
)
def test_claims_on_endings_made_by_hand(tmp_path, ends, expected):
    spread = np.linspace(-0.01, 0.01, 8)
    found = {"teacher": Made({"nll": 2.0}, {"row_nll": 2.0 + spread})}
    labels = {"alone": "text", "half": "both", "taught": "teacher"}
    for name, end in zip(labels, ends, strict=True):
        history = [{"step": 0, "held_out/nll": 6.0}, {"step": 4, "held_out/nll": end}]
        found[name] = Made(rows={"4/held_out/row_nll": end + spread}, history=history)
    results = smollm_report.results(labels, 4, 2, found, tmp_path)
    assert verdicts(smollm_student, results) == expected
    table = {row["model"]: row for row in results.tables[0].rows}
    assert table["student: text"]["perplexity"] == pytest.approx(np.exp(3.0))
    assert table["2 layers, untrained"]["NLL"] == 6.0
    assert all(path.exists() for path in results.plots.values())
