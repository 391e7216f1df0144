"""Stages: their keys, their artefacts, runs that go on where they were killed."""

import contextlib
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from support import toy_experiment as toy
from support.config_reads import unread_fields

from kd_jax.launch import artefacts, run, weights
from kd_jax.launch.artefacts import Artefact, NotPlanned
from kd_jax.launch.config import identity, plain
from kd_jax.launch.errors import UserError
from kd_jax.launch.execute import Run, carry_out
from kd_jax.launch.goodput import Events
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.meter import MEASURED
from kd_jax.launch.stages import Compute, Evaluation, Stage, Training, keys, materialise, mesh_of
from kd_jax.steps import make_train_step
from kd_jax.types import Objective, Output, weighted_sum

NAME = "support.toy_experiment"


def execute(folder, preset="laptop", **changes):
    config = dataclasses.replace(toy.PRESETS[preset], **changes)
    return run.execute(toy, NAME, preset, config, folder)


def stage_folder(folder, name):
    (found,) = (x for x in (folder / "stages").glob(f"{name}-*"))
    return found


def tree_of(folder, name):
    stored = Artefact(name, "", stage_folder(folder, name)).weights()
    return materialise(stored, make_mesh(), toy.RULES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, execute(folder)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def numbers(file):
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines(file)]


# --- keys


def stage(name, needs=(), depends=None):
    return Stage(name, lambda found: Compute(lambda: (None, {})), needs, depends)


def test_a_key_changes_with_what_the_stage_depends_on_and_with_its_needs():
    def of(first, second):
        return keys([stage("a", depends=first), stage("b", ("a",), second)], "m", {"beta": 1})

    base = of(1, 1)
    assert of(1, 1) == base
    assert of(1, 2)["a"] == base["a"]
    assert of(1, 2)["b"] != base["b"]
    assert of(2, 1)["b"] != base["b"]  # through its need


def test_by_default_a_stage_depends_on_the_whole_identity():
    assert keys([stage("a")], "m", {"beta": 1}) != keys([stage("a")], "m", {"beta": 2})
    named = [stage("a", depends={"seed": 0})]
    assert keys(named, "m", {"beta": 1}) == keys(named, "m", {"beta": 2})
    assert keys(named, "m", {}) != keys(named, "another", {})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage("a"), stage("a")], "given twice"),
        ([stage("a", ("b",)), stage("b")], "a needs b; the stages before it are none"),
        ([stage("a/b")], "takes letters"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        keys(stages, "m", {})


def test_identity_leaves_out_what_cannot_change_the_result():
    assert identity(toy.Config(file="x", mesh=MeshConfig(fsdp=2), log_every=3)) == {
        "steps": 6,
        "pretrain_steps": 4,
        "optim": {"rate": 0.1},
        "seed": 0,
    }


def test_plain_data_is_legal_json():
    data = {"nan": math.nan, "inf": [-math.inf], "f": np.float32(2), "g": jnp.ones(2), "fn": plain}
    assert json.loads(json.dumps(plain(data), allow_nan=False)) == {
        "nan": "nan",
        "inf": ["-inf"],
        "f": 2.0,
        "g": [1.0, 1.0],
        "fn": "kd_jax.launch.config.plain",
    }
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        plain(object())


# --- whole runs


def test_a_run_leaves_its_files(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["claims"][0]["verdict"] == "holds"
    assert results["values"]["nan"] == "nan"
    assert {stage["name"] for stage in results["stages"]} == {"pretrain", "finetune", "norm"}
    assert (folder / results["plots"]["error"]).exists()
    assert (folder / "tables" / "errors.csv").exists()
    assert list((folder / "tensorboard").iterdir())
    assert not list(folder.glob("stages/*.partial"))
    environment = (folder / "environment.json").read_text()
    assert json.loads(environment)["devices"]["count"] == 8
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["optim"] == config["identity"]["optim"] == {"rate": 0.1}


def test_the_history_holds_each_evaluation_once(finished):
    folder, _ = finished
    artefact = Artefact("finetune", "", stage_folder(folder, "finetune"))
    assert [point["step"] for point in artefact.history] == [0, 2, 4, 6]
    steps, errors = artefact.series("distance/mse")
    assert steps == [0, 2, 4, 6]
    assert errors[-1] == artefact.values["distance/mse"] < errors[0]
    last = artefact.rows["6/distance/error"]
    np.testing.assert_allclose(np.mean(last**2), errors[-1], rtol=1e-5)
    kernel = tree_of(folder, "finetune")["kernel"]
    np.testing.assert_allclose(kernel - np.arange(4), last, rtol=1e-6)
    with pytest.raises(KeyError, match="it has distance/mse, step"):
        artefact.series("nothing")


def test_a_stage_starts_from_what_it_needs(finished):
    folder, _ = finished
    before = Artefact("pretrain", "", stage_folder(folder, "pretrain"))
    after = Artefact("finetune", "", stage_folder(folder, "finetune"))
    assert after.history[0]["distance/mse"] == before.values["distance/mse"]
    assert after.about["needs"] == {"pretrain": stage_folder(folder, "pretrain").name[-8:]}


def test_a_computed_stage_keeps_numbers_and_arrays(finished):
    artefact = Artefact("norm", "", stage_folder(finished[0], "norm"))
    assert artefact.values.keys() == {"mse"}
    np.testing.assert_array_equal(artefact.rows["ones"], np.ones(2))
    with pytest.raises(ValueError, match="norm saved no arrays"):
        artefact.weights()


def test_a_second_start_runs_nothing_again(finished, capsys):
    folder, results = finished
    again = execute(folder, fail_at=0, file="/nowhere")
    assert again == results
    assert capsys.readouterr().out.count("finished before") == 3


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(finished, tmp_path, capsys):
    whole, _ = finished
    folder = tmp_path / "run"
    with pytest.raises(toy.Died):
        execute(folder, fail_at=5, checkpoint_every=3)
    assert stage_folder(folder, "finetune").name.endswith(".partial")
    # Draw 1 must not be asked for again; the point of step 4 lies after the checkpoint of step 3.
    execute(folder, fail_at=1, checkpoint_every=3)
    assert "finetune: resumed at step 3 of 6" in capsys.readouterr().out
    for name in ("pretrain", "finetune"):
        mine, theirs = stage_folder(folder, name), stage_folder(whole, name)
        assert mine.name == theirs.name
        assert lines(mine / "history.jsonl") == lines(theirs / "history.jsonl")
        np.testing.assert_array_equal(
            tree_of(folder, name)["kernel"], tree_of(whole, name)["kernel"]
        )
    theirs = numbers(whole / "metrics.jsonl")
    assert numbers(folder / "metrics.jsonl") == theirs


@pytest.mark.slow
def test_a_run_killed_before_its_first_save_writes_each_line_once(finished, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(toy.Died):
        execute(folder, fail_at=3)
    execute(folder)
    assert numbers(folder / "metrics.jsonl") == numbers(finished[0] / "metrics.jsonl")


def test_an_artefact_without_its_last_file_is_made_again(finished, tmp_path, capsys):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (stage_folder(folder, "finetune") / "artefact.json").unlink()
    norm = stage_folder(folder, "norm")
    norm.with_name(norm.name + ".partial").mkdir()  # a kill just before the end leaves it
    execute(folder)
    assert "finetune: training, 6 steps" in capsys.readouterr().out
    assert tree_of(folder, "finetune")["kernel"].shape == (4,)
    assert not list(folder.glob("stages/*.partial"))


@pytest.mark.slow
def test_runs_of_a_module_share_what_is_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kd_jax.launch.runtime.init", lambda: None)
    assert run.main(NAME, ["laptop"]) == 0
    first = next((tmp_path / "runs").glob("support/toy_experiment/laptop-*"))
    before = {file: file.stat().st_mtime_ns for file in first.rglob("*")}
    capsys.readouterr()
    assert run.main(NAME, ["laptop", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert f"stage 1/3 pretrain: finished before in {first.relative_to(tmp_path)}" in out
    assert "stage 2/3 finetune: training, 3 steps" in out
    assert {file: file.stat().st_mtime_ns for file in first.rglob("*")} == before
    second = {*first.parent.iterdir()} - {first}
    assert not list(second.pop().glob("stages/pretrain-*"))
    assert run.main(NAME, ["laptop", "--workdir", "own", "--list-stages"]) == 0
    assert not (tmp_path / "own").exists()
    assert capsys.readouterr().out.count("to do") == 3


def test_every_field_of_the_toys_config_is_read_and_smoke_tests_no_claim(tmp_path):
    def go(config):
        results = run.execute(toy, NAME, "smoke", config, tmp_path / "run")
        assert results["claims"][0]["verdict"] == "not tested"

    assert unread_fields(toy.PRESETS["smoke"], go) == []


def test_a_field_that_nobody_reads_is_found():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(toy.Config):
        unread: int = 0
        nested: toy.Optim = toy.Optim()

    def go(config):
        hash(config), repr(config), identity(config), dataclasses.asdict(config)
        return config.optim.rate + config.nested.rate + config.steps + config.pretrain_steps

    config = Config()
    object.__setattr__(config, "optim", toy.Optim())
    assert unread_fields(config, go) == ["fail_at", "file", "seed", "unread"]


# --- parts that the toy does not have


def training(rows=8, **changes) -> Training:
    """One number is pulled towards frozen["aim"]["kernel"] plus batch["shift"]."""

    def loss(params, carry, frozen, batch, ctx):
        aim = frozen["aim"]["kernel"][None] + batch["shift"][:, None]
        error = jnp.square(params["model"]["kernel"][None] - aim).sum(-1)
        return Output({"mse": weighted_sum(error)})

    objective = Objective(lambda key, params, frozen, batch: ({}, {"clock": jnp.zeros(())}), loss)
    base = Training(
        step=make_train_step(objective, optax.sgd(0.5)),
        weights=weights.from_arrays({"kernel": np.zeros(4, np.float32)}),
        frozen=weights.joined(aim=weights.from_arrays({"kernel": np.arange(4, dtype=np.float32)})),
        batches=lambda step, which: {"shift": np.zeros(rows, np.float32)[which]},
        batch={"shift": jax.ShapeDtypeStruct((rows,), np.float32)},
        batch_size=rows,
        steps=2,
        rules=toy.RULES,
    )
    return base._replace(**changes)


def launch(tmp_path, work, mesh=None):
    config = toy.Config(checkpoint_every=1)
    mesh = make_mesh(mesh or MeshConfig())
    with contextlib.closing(Events(tmp_path / "events.jsonl")) as events:
        run = Run(tmp_path, mesh, config, "t", lambda _: None, events)
        return carry_out(run, "t", work, "0", {})


def test_frozen_weights_and_prepare_reach_the_step(tmp_path):
    seen = []

    def measure(params, carry, frozen):
        seen.append(
            (params["model"]["kernel"].sharding.spec, frozen["aim"]["kernel"].sharding.spec)
        )
        assert mesh_of(params).shape["fsdp"] == 4
        assert carry.keys() == {"clock"}
        return {"x": 1.0}

    work = training(
        prepare=lambda state, frozen, batch: {"shift": batch["shift"] + 1 + state.carry["clock"]},
        prepare_every=2,
        evaluations=(Evaluation("e", 5, measure),),
        result=lambda state, frozen: {
            "both": state.params["model"]["kernel"] + frozen["aim"]["kernel"]
        },
    )
    artefact = launch(tmp_path, work, MeshConfig(fsdp=4))
    tree = materialise(artefact.weights(), make_mesh())
    # One step of rate 1/2 on a square goes the whole way: to aim + 1.
    np.testing.assert_allclose(tree["both"], 2 * np.arange(4) + 1, rtol=1e-6)
    assert seen == [(PartitionSpec("fsdp"), PartitionSpec("fsdp"))] * 2  # at the start and the end
    assert [point["step"] for point in artefact.history] == [0, 2]


def test_frozen_rules_place_a_frozen_tree_apart(tmp_path):
    def measure(params, carry, frozen):
        assert frozen["aim"]["kernel"].sharding.spec == PartitionSpec()
        return {}

    work = training(frozen_rules={"aim": ((".*", ()),)}, evaluations=(Evaluation("e", 1, measure),))
    launch(tmp_path, work, MeshConfig(fsdp=4))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 4}, ValueError, r"batch\['shift'\] has 8 rows, batch_size is 4"),
        ({"steps": 0}, ValueError, "steps: got 0"),
        ({"frozen_rules": {"ref": ()}}, ValueError, "frozen_rules names ref"),
        ({"evaluations": (Evaluation("a/b", 1, dict),)}, ValueError, "name without /"),
        ({"evaluations": (Evaluation("a", 1, dict),) * 2}, ValueError, "share a name"),
        ({"rules": (("other", ()),)}, ValueError, "no rule matches kernel"),
    ],
)
def test_a_training_that_contradicts_itself_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        launch(tmp_path, training(**changes))


def test_a_batch_that_the_mesh_does_not_divide_is_the_persons_to_put_right(tmp_path):
    with pytest.raises(UserError, match=r"batch size 4 does not divide over --mesh.data 8"):
        launch(tmp_path, training(rows=4))


def test_a_planned_artefact_has_shapes_and_nothing_else():
    shapes = {"kernel": jax.ShapeDtypeStruct((4,), np.float32)}
    planned = Artefact("a", "0", None, shapes)
    assert planned.weights().abstract == shapes
    for ask in (
        lambda: planned.values,
        lambda: planned.rows,
        lambda: planned.history,
        lambda: planned.weights().make(shapes),
        lambda: Artefact("a", "0", None).weights(),
    ):
        with pytest.raises(NotPlanned, match="stage a"):
            ask()


def test_rows_take_any_name_and_refuse_objects(tmp_path):
    rows = {"file": np.ones(2), "a/b": np.zeros((0, 3)), "text": np.array(["é", "b"])}
    artefacts.write_rows(tmp_path / "rows.npz", rows)
    with np.load(tmp_path / "rows.npz") as found:
        assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in rows.items()}
    with pytest.raises(ValueError, match="[Oo]bject"):
        artefacts.write_rows(tmp_path / "rows.npz", {"x": np.array([object()])})
