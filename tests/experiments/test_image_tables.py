"""Published tables: protocols, plans without data, claims."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import (
    Made,
    changed,
    compiled_quickly,
    help_of,
    outline,
    refusal,
    verdicts,
)

from experiments.distillation import image_tables
from experiments.distillation.parts import (
    tables_images,
    tables_methods,
    tables_report,
)
from experiments.distillation.parts.tables_images import Images
from kd_jax.data import image_sets
from kd_jax.launch import cli, run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Training, placed
from kd_jax.models.mixer import MixerConfig
from kd_jax.models.mlp import MLPConfig
from kd_jax.models.resnet import ImageNetResNetConfig
from kd_jax.types import TrainState

NAME = image_tables.__name__
PRESETS = image_tables.PRESETS
SMOKE, PAPER = PRESETS["smoke"], PRESETS["paper"]


@pytest.fixture
def no_data(monkeypatch):
    def read(*_, **__):
        raise AssertionError("data were read")

    monkeypatch.setattr(image_sets, "records", read)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stage_a_student(preset, no_data):
    config = PRESETS[preset]
    found = outline(image_tables, config)
    assert list(found)[0] == "teacher" and found.pop("teacher") == ()
    assert len(found) == len(config.methods) * config.seeds
    for name, needs in found.items():
        assert needs == (() if name.startswith("ce_") else ("teacher",))


def test_what_a_stage_depends_on():
    config = dataclasses.replace(PRESETS["paper_tokens"], seeds=1)
    every = set(outline(image_tables, config))
    students, more = every - {"teacher"}, dataclasses.replace
    losses = config.losses
    for change, expected in (
        ({"learn": more(config.learn, rate=0.3)}, students),
        ({"learn_teacher": more(config.learn_teacher, rate=0.3)}, set()),  # it is from a file
        ({"teacher_weights": "other.safetensors"}, every - {"ce_0"}),
        ({"losses": more(losses, smoothing=0.2)}, students),
        ({"losses": more(losses, ofa=2.0)}, {"ofa_0"}),
        ({"losses": more(losses, kd=more(losses.kd, soft=2.0))}, {"kd_0"}),
        ({"images": more(config.images, flip=False)}, every),
        ({"images": more(config.images, folder="elsewhere")}, set()),
    ):
        assert changed(image_tables, config, more(config, **change)) == expected, change
    trained = more(PAPER, learn_teacher=more(PAPER.learn_teacher, epochs=250))
    alone = {f"ce_{seed}" for seed in PAPER.repetitions}
    assert changed(image_tables, PAPER, trained) == set(outline(image_tables, PAPER)) - alone


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("smoke --methods kd dkd", "methods: got kd dkd, takes ce among them"),
        ("smoke --methods ce ce", "methods: got ce ce, takes each once"),
        ("smoke --images.name mnist", "images.name: got mnist, takes digits"),
        ("smoke --images.name imagenet2012", "images.crop: got None, imagenet2012 takes one"),
        ("smoke --images.first 2000", "images.first: got 2000, takes 0 for all, or up to 1437"),
        ("paper_imagenet --images.first 9", "images.first: got 9, imagenet2012 takes 0"),
        ("paper_imagenet --images.crop.side 300", "shorter: got 256, takes at least the side"),
        ("smoke --images.name cifar100", "teacher.classes: got 10, cifar100 has 100"),
        ("smoke --images.pad -1", "images.pad: got -1, takes numbers from 0"),
        ("smoke --teacher-weights x", "teacher_weights: got a file for ResNetConfig"),
        ("smoke --seeds 0", "seeds: got 0, takes positive numbers"),
        ("smoke --losses.smoothing 1", "smoothing: got 1.0, takes numbers from 0, below 1"),
        ("smoke --losses.kd.hard -1", "hard: got -1.0, takes numbers from 0"),
        ("smoke --losses.ofa 0.5", "ofa: got 0.5, takes numbers from 1"),
        ("paper --learn.decays 180 150", "decays: got (180, 150), takes rising epochs below 240"),
        ("paper --learn.epochs 200", "takes rising epochs below 200"),
        ("paper --learn.momentum 1", "momentum: got 1.0, takes numbers from 0, below 1"),
        ("paper --learn.weight-decay -1", "weight_decay: got -1.0, takes numbers from 0"),
        ("paper --learn.warm-up 150", "warm_up: got 150, takes fewer epochs than the first part"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(image_tables, *argv.split())


def test_networks_of_ofa():
    mixer = MixerConfig(image=8, channels=1, patch=2)
    tables_methods.check_ofa(SMOKE.student, mixer)
    with pytest.raises(ValueError, match="student: got MixerConfig, ofa takes ResNets"):
        dataclasses.replace(SMOKE, student=mixer, methods=("ce", "ofa"))
    perceptron = MLPConfig(inputs=64, widths=(8,), classes=10)
    with pytest.raises(ValueError, match="teacher: got MLPConfig, ofa takes ResNets, ViTs"):
        dataclasses.replace(SMOKE, teacher=perceptron, methods=("ce", "ofa"))


def test_flags_of_networks_are_those_of_the_presets_class(capsys):
    tokens = cli.parse(image_tables, NAME, ["paper_tokens", "--teacher.depth", "6"]).config
    assert tokens.teacher == dataclasses.replace(PRESETS["paper_tokens"].teacher, depth=6)
    assert type(tokens.student) is ImageNetResNetConfig
    assert "--student.stem-stride" in help_of(image_tables, "paper_imagenet", capsys)
    assert "--teacher.depth" in refusal(image_tables, "paper", "--teacher.depth", "6")


# (teacher's parameters, student's, steps of a student): 240 * 50,000 / 64 and so on.
PLANNED = {
    "paper": (7_433_860, 1_233_540, 187_500),
    "paper_imagenet": (21_797_672, 11_689_512, 500_456),
    "paper_tokens": (5_717_416, 11_689_512, 250_228),
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PLANNED)
def test_papers_presets_are_planned_without_data(preset, no_data):
    config = dataclasses.replace(PRESETS[preset], seeds=1)
    mesh = make_mesh(MeshConfig())
    found: dict[str, Artefact] = {}
    sizes: dict[str, int] = {}
    for stage in image_tables.stages(config):
        work = stage.build({need: found[need] for need in stage.needs})
        shapes = None
        if isinstance(work, Training):
            whole = placed(stage.name, work, mesh)
            assert work.prepare is not None
            batch = jax.eval_shape(
                work.prepare, whole.state._replace(carry={}), whole.frozen, whole.batch
            )
            assert batch["inputs"].dtype == jnp.float32
            after, _ = jax.eval_shape(whole.step, whole.state, whole.frozen, batch)
            assert isinstance(after, TrainState)
            shapes = jax.eval_shape(work.result, inner(whole.state), whole.frozen)
            tree = whole.state.params["model"]
            (evaluation,) = work.evaluations
            carry = inner(whole.state).carry
            assert set(evaluation.plan(whole.state.params, carry, whole.frozen)) == {"test"}
            if stage.name != "teacher":
                assert work.steps == PLANNED[preset][2]
        else:
            shapes = work.shapes
            tree = shapes["teacher"]
            assert set(work.plan(mesh)) == {"test"}
        sizes[stage.name] = sum(x.size for x in jax.tree.leaves(tree))
        found[stage.name] = Artefact(stage.name, "0", None, shapes)
    expected = dict.fromkeys(sizes, PLANNED[preset][1]) | {"teacher": PLANNED[preset][0]}
    assert sizes == expected


def inner(state):
    return state._replace(carry=state.carry["inner"])


def test_one_papers_student_is_built_without_data(no_data):
    config = dataclasses.replace(PAPER, seeds=1, methods=("ce",))
    teacher, student = (stage.build({}) for stage in image_tables.stages(config))
    assert isinstance(teacher, Training) and isinstance(student, Training)
    assert (teacher.steps, student.steps) == (187_500, 187_500)
    assert student.batch["inputs"].shape == (64, 32, 32, 3)
    assert student.evaluations[0].every == 187_500 // 24
    imagenet = PRESETS["paper_imagenet"].images
    assert imagenet.batch(256)["inputs"].shape == (256, 224, 224, 3)


def test_sizes_of_sets_are_those_of_their_files():
    images = Images(name="digits")
    found = tables_images._arrays("digits", None)
    assert images.count == len(found["train"]["index"])
    assert dataclasses.replace(images, first=5).count == 5
    few = tables_images._train("digits", None, 5)
    assert len(set(few["index"])) == 5 and list(few["index"]) != list(range(5))
    batches = tables_images.batches(dataclasses.replace(images, first=5), seed=0, batch_size=5)
    np.testing.assert_array_equal(np.sort(batches(0, slice(0, 5))["index"]), np.sort(few["index"]))


def made(accuracy):
    return Made({"steps": 9}, {}, [{"step": 9, "test/accuracy": accuracy}])


def artefacts(**ends):
    found = {f"{m}_{s}": made(x + 0.1 * s) for m, x in ends.items() for s in range(3)}
    return {"teacher": Made({"accuracy": 79.0}), **found}


def test_claims_on_artefacts_made_by_hand(tmp_path):
    pair = "cifar100", PAPER.teacher, PAPER.student
    methods = ("ce", "kd", "dkd", "dist")

    def results(seeds=range(3), pair=pair, **ends):
        methods: Any = tuple(ends)
        return tables_report.results(pair, methods, seeds, artefacts(**ends), tmp_path)

    good = results(ce=72.0, kd=73.0, dkd=76.0, dist=76.5)
    assert verdicts(image_tables, good) == ["holds"] * 3 + ["not tested"]
    assert good.values["accuracy"]["dkd"] == pytest.approx([76.0, 76.1, 76.2])
    rows = {row["student of"]: row for row in good.tables[0].rows}
    assert rows["DIST"]["gain over labels"] == pytest.approx(4.5)
    assert (rows["DKD"]["published"], rows["(teacher)"]["published"]) == (76.32, 79.42)
    assert "gain over labels" not in rows["labels"]
    assert Path(good.plots["gains"]).exists()
    bad = results(ce=73.5, kd=73.0, dkd=72.0, dist=72.5)
    assert verdicts(image_tables, bad) == ["fails"] * 3 + ["not tested"]
    tokens = PRESETS["paper_tokens"]
    pair = "imagenet2012", tokens.teacher, tokens.student
    ofa = results(pair=pair, ce=69.0, kd=70.0, ofa=71.0)
    assert verdicts(image_tables, ofa) == ["holds", "not tested", "not tested", "holds"]
    # One run has no interval; other networks have no published figures.
    one = results(seeds=range(1), **dict.fromkeys(methods, 70.0))
    assert verdicts(image_tables, one) == ["not tested"] * 4
    other = results(pair=("digits", SMOKE.teacher, SMOKE.student), ce=70.0, kd=71.0)
    assert all("published" not in row for row in other.tables[0].rows)


def test_published_pairs_are_those_of_the_presets():
    pairs = {
        (c.images.name, c.teacher, c.student): c
        for name, c in PRESETS.items()
        if name.startswith("paper")
    }
    assert pairs.keys() == tables_report.PUBLISHED.keys()
    for pair, config in pairs.items():
        assert set(config.methods) == set(tables_report.PUBLISHED[pair].students)


@pytest.mark.slow
def test_a_run_of_few_steps_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(
        SMOKE,
        methods=("ce", "kd", "dkd", "dist", "ofa"),
        images=dataclasses.replace(SMOKE.images, first=32),
        learn_teacher=SMOKE.learn,  # its rate falls, too
        score_batch=120,
    )

    def go(config):
        with compiled_quickly():
            found = run.execute(image_tables, NAME, "smoke", config, tmp_path / "run")
        assert {c["verdict"] for c in found["claims"]} == {"not tested"}
        assert set(found["values"]["accuracy"]) == set(config.methods)

    assert unread_fields(config, go) == []
