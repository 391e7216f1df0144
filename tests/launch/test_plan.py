"""Plans: every training compiled from shapes, and a verdict on its memory."""

import dataclasses
import json
import types

import jax
import pytest
from support import toy_experiment as toy

from kd_jax.launch import plan
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.stages import Compute, Stage

NAME = "support.toy_experiment"


def of(topology="cpu:8", module=toy, **changes):
    config = dataclasses.replace(toy.PRESETS["laptop"], **changes)
    return plan.of(module, NAME, "laptop", config, topology)


def test_each_training_is_planned_and_equal_programs_are_compiled_once(monkeypatch):
    compiled = []
    real = plan._compile
    monkeypatch.setattr(
        plan, "_compile", lambda lowered, topology: compiled.append(1) or real(lowered, topology)
    )
    rows = of(mesh=MeshConfig(fsdp=4))
    assert [row["stage"] for row in rows] == ["pretrain", "finetune"]
    assert len(compiled) == 1
    row = rows[0]
    assert (row["mesh"], row["devices"], row["verdict"]) == ("2x4x1", 8, plan.UNKNOWN)
    # A device holds a fourth of 4 features in f32, three times (kernel and Adam's two moments).
    assert row["reused"] >= 3 * 4
    assert row["arguments"] < 3 * 4 * 4 + 8 * 5 * 4
    assert row["peak"] == (row["arguments"] + row["outputs"] - row["reused"] + row["temporaries"])
    json.dumps(rows, allow_nan=False)


def test_no_array_is_made_and_no_data_is_read(monkeypatch):
    def never(*args, **keywords):
        raise AssertionError

    monkeypatch.setattr(toy, "_inputs", never)
    monkeypatch.setattr("kd_jax.launch.weights.init_state", never)
    monkeypatch.setattr("kd_jax.launch.weights.from_checkpoint", never)
    assert len(of("cpu:2")) == 2


def test_a_stage_that_asks_for_values_is_not_planned():
    def build(artefacts):
        artefacts["pretrain"].values["distance/mse"]
        raise AssertionError

    stages = (toy.stages(toy.Config())[0], Stage("second", build, ("pretrain",)))
    module = types.SimpleNamespace(stages=lambda config: stages)
    first, second = of("cpu:2", module)
    assert first["verdict"] == plan.UNKNOWN
    assert second["verdict"] == plan.NOT_PLANNED
    assert "stage pretrain: its values are not known" in second["reason"]
    plan.show([second])


def test_a_training_after_a_computed_stage_needs_its_shapes():
    def module(shapes):
        merge = Stage("pretrain", lambda _: Compute(dict, shapes))
        finetune = toy.stages(toy.Config())[1]
        return types.SimpleNamespace(stages=lambda config: (merge, finetune))

    (row,) = of("cpu:2", module({"kernel": jax.ShapeDtypeStruct((4,), "float32")}))
    assert row["stage"] == "finetune"
    assert row["verdict"] == plan.UNKNOWN
    (row,) = of("cpu:2", module(None))
    assert row["reason"] == "stage pretrain: the shapes of its result are not known"


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory "
WHOLE = OUT_OF_MEMORY + "in memory space hbm. Used 19.40G of 15.75G hbm.\nmore"
PART = OUT_OF_MEMORY + (
    "on HBM, the total memory required for HLO temporaries (96.00G) exceeds available HBM "
    "(15.75G). HLO module: jit__lambda."
)


class Lowered:
    """Stands for a program whose compiled form needs `gib`, or is refused with a message."""

    def __init__(self, gib):
        self.gib = gib

    def compile(self):
        if isinstance(self.gib, str):
            raise jax.errors.JaxRuntimeError(self.gib)
        sizes = dict.fromkeys(("argument", "output", "alias", "temp"), 0)
        stats = {f"{k}_size_in_bytes": v for k, v in sizes.items()}
        stats["peak_memory_in_bytes"] = int(self.gib * 2**30)
        return types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**stats))


@pytest.mark.parametrize(
    ("gib", "topology", "verdict", "reason"),
    [
        (14.1, "v5e:4x4", plan.FITS, "90% of 15.75 GiB"),
        (14.3, "v5e:4x4", plan.UNKNOWN, "91% of 15.75 GiB"),
        (14.3, "v3:4x4", plan.UNKNOWN, "not known"),
        (WHOLE, "v5e:4x4", plan.TOO_LARGE, "needs 19.40G of 15.75G"),
        (PART, "v5e:4x4", plan.TOO_LARGE, "needs 96.00G of 15.75G"),
        (OUT_OF_MEMORY, "v5e:4x4", plan.TOO_LARGE, OUT_OF_MEMORY.strip()),
    ],
)
def test_verdicts(gib, topology, verdict, reason):
    row = plan._compile(Lowered(gib), topology)
    assert row["verdict"] == verdict
    assert reason in row["reason"]


def test_other_errors_of_the_compiler_come_out_as_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        plan._compile(Lowered("INTERNAL: a bug"), "v5e:4x4")


def test_a_mesh_that_does_not_divide_is_the_persons_to_put_right():
    with pytest.raises(UserError, match="does not divide the 4 devices"):
        of("cpu:4", mesh=MeshConfig(fsdp=3))


def test_several_modules_and_those_that_fail(capsys, tmp_path):
    names = [NAME, "experiments.absent"]
    argv = [
        *names,
        "--preset",
        "laptop",
        "--topologies",
        "cpu:2",
        "--json",
        f"{tmp_path}/plans.json",
    ]
    assert plan.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: experiments.absent on cpu:2: no module")
    assert "support.toy_experiment laptop, GiB a device" in captured.out
    rows = json.loads((tmp_path / "plans.json").read_text())
    assert [row["stage"] for row in rows] == ["pretrain", "finetune"]


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plan, "_has_libtpu", lambda: False)
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **k: 1 / 0)
    with pytest.raises(UserError, match=r"pip install 'kd_jax\[tpu\]'"):
        plan.devices_of("v5e:4x4")


def test_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu", reason="libtpu is not installed (extra `tpu`)")
    rows = of("v5e:2x2", mesh=MeshConfig(fsdp=4))
    assert [row["verdict"] for row in rows] == [plan.FITS] * 2
    assert len(plan.devices_of("v4:2x2x1")) == 4
    with pytest.raises(UserError, match="unknown topology v5e:3x3"):
        plan.devices_of("v5e:3x3")
