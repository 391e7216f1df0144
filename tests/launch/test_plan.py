"""Plans: every program of an experiment compiled from shapes, and a verdict on its memory."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import pytest
from support import toy_experiment as toy

from kd_jax.launch import plan
from kd_jax.launch.artefacts import NotPlanned
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.planning import compiled
from kd_jax.launch.planning import tables as plan_tables
from kd_jax.launch.planning.chips import GIB, Chip
from kd_jax.launch.planning.flops import Flops
from kd_jax.launch.planning.footprint import Footprint
from kd_jax.launch.sharding import batch_sharding, replicated
from kd_jax.launch.stages import Compute, Evaluation, Program, Stage

NAME = "support.toy_experiment"
FLOAT = 4
KEY_AND_STEPS = 8 + 4 + 4  # with the number of the first bad step


def of(topology="cpu:8", module=toy, **changes):
    config = dataclasses.replace(toy.PRESETS["laptop"], **changes)
    return plan.of(module, NAME, "laptop", config, topology)


@pytest.fixture
def compilations(monkeypatch):
    done = []
    real = compiled.compile_
    monkeypatch.setattr(compiled, "compile_", lambda *args: done.append(1) or real(*args))
    return done


def test_each_training_is_planned_and_equal_programs_are_compiled_once(compilations):
    rows = of(mesh=MeshConfig(fsdp=4))
    assert [(row["stage"], row["program"]) for row in rows] == [
        ("pretrain", "step"),
        ("finetune", "step"),
    ]
    assert len(compilations) == 1
    row = rows[0]
    assert (row["mesh"], row["devices"], row["slices"]) == ("data=2 fsdp=4", 8, 1)
    assert (row["verdict"], row["hbm"], row["help"]) == (plan.UNKNOWN, None, [])
    assert (row["parameters"], row["frozen_parameters"]) == (4, 0)
    sizes = row["bytes"]
    # A device holds one of 4 features, with two moments and Adam's count, and one of 8 rows.
    expected = {"parameters": FLOAT, "optimizer": 3 * FLOAT, "carry": KEY_AND_STEPS, "frozen": 0}
    assert {name: sizes[name] for name in expected} == expected
    assert sizes["batch"] == 5 * FLOAT
    # What the compiler takes is what the shapes say.
    assert sizes["peak"] == sum(size for name, size in sizes.items() if name != "peak")
    # [8, 4] x [4], and its gradient; the data is [8, 4] x [4] too.
    assert row["flops"] == row["model_flops"] == 3 * 2 * 8 * 4
    assert row["collectives"]["all-reduce"] > 0
    assert row["roofline"] is None
    json.dumps(rows, allow_nan=False)


def test_no_array_is_made_and_no_data_is_read(monkeypatch):
    def never(*args, **keywords):
        raise AssertionError

    monkeypatch.setattr(toy, "_inputs", never)
    monkeypatch.setattr("kd_jax.launch.weights.init_state", never)
    monkeypatch.setattr("kd_jax.launch.weights.from_checkpoint", never)
    assert len(of("cpu:2")) == 2


def placed_on(mesh, shape, sharding=replicated):
    return jax.ShapeDtypeStruct(shape, "float32", sharding=sharding(mesh))


def _with_programs(config):
    """Training with everything that is compiled, then a computed stage that names a program."""

    def train(_):
        training = toy.stages(config)[0].build({})

        def prepare(state, frozen, batch):
            return {name: jnp.concatenate([x, x]) for name, x in batch.items()}

        def names(params, carry, frozen):
            kernel = params["model"]["kernel"]
            batch = placed_on(kernel.sharding.mesh, (16, 4), batch_sharding)
            return {"error": Program(jax.jit(lambda w, x: x @ w), (kernel, batch))}

        (evaluation,) = training.evaluations
        return training._replace(prepare=prepare, evaluations=(evaluation._replace(plan=names),))

    def score(_):
        def names(mesh):
            arguments = placed_on(mesh, (32, 4), batch_sharding), placed_on(mesh, (4, 2))
            return {"scores": Program(jax.jit(jnp.matmul), arguments)}

        return Compute(dict, plan=names)

    return (Stage("train", train), Stage("score", score), Stage("rest", lambda _: Compute(dict)))


WITH_PROGRAMS = types.SimpleNamespace(stages=_with_programs)


def test_all_programs_of_all_stages():
    rows = of(module=WITH_PROGRAMS, mesh=MeshConfig(fsdp=4))
    assert [(row["stage"], row["program"]) for row in rows] == [
        ("train", "prepare"),
        ("train", "step"),
        ("train", "distance/error"),
        ("score", "scores"),
    ]
    _, step, evaluation, score = (row["bytes"] for row in rows)
    assert step["batch"] == 2 * 5 * FLOAT  # as `prepare` leaves it
    # The optimiser's state lies there during an evaluation, and its peak says so.
    assert evaluation["optimizer"] == step["optimizer"] > 0
    assert evaluation["batch"] == 2 * 4 * FLOAT
    kernel, outputs = FLOAT, evaluation["outputs"] + evaluation["temporaries"]
    rest = evaluation["optimizer"] + evaluation["carry"]
    assert evaluation["peak"] == kernel + evaluation["batch"] + outputs + rest
    # What a computed stage reads whole is not trained.
    assert (score["parameters"], score["frozen"], score["batch"]) == (0, 8 * FLOAT, 16 * FLOAT)
    assert (rows[3]["parameters"], rows[3]["frozen_parameters"]) == (0, 8)
    assert rows[3]["flops"] == 2 * 32 * 4 * 2


def test_what_is_kept_in_the_hosts_memory_is_no_part_of_the_chips(monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:4])
    here = placed_on(mesh, (4, 4))
    there = jax.ShapeDtypeStruct(
        (8, 4), "float32", sharding=batch_sharding(mesh).with_memory_kind("pinned_host")
    )
    found = plan.footprint.of((here, there), {"frozen": {"a": here, "b": there}})
    assert found.bytes["frozen"] == found.arguments == 16 * FLOAT
    assert (found.host, found.frozen_parameters) == (2 * 4 * FLOAT, 48)
    assert found.narrowed == 16 * FLOAT // 2


def test_a_stage_that_asks_for_values_is_not_planned(capsys):
    def build(artefacts):
        artefacts["pretrain"].values["distance/mse"]
        raise AssertionError

    stages = (toy.stages(toy.Config())[0], Stage("second", build, ("pretrain",)))
    module = types.SimpleNamespace(stages=lambda config: stages)
    first, second = of("cpu:2", module)
    assert first["verdict"] == plan.UNKNOWN
    assert (second["verdict"], second["program"]) == (plan.NOT_PLANNED, None)
    assert "stage pretrain: its values are not known" in second["reason"]
    plan.show([second])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [second]


def test_an_evaluation_that_cannot_be_planned_leaves_the_step():
    def unknown(*_):
        raise NotPlanned("no data")

    def build(_):
        evaluation = Evaluation("distance", 1, lambda *_: {}, unknown)
        return toy.stages(toy.Config())[0].build({})._replace(evaluations=(evaluation,))

    module = types.SimpleNamespace(stages=lambda config: (Stage("train", build),))
    assert [row["program"] for row in of("cpu:2", module)] == ["step", None]


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
CHIP = Chip("made up", 1e12, 15.75 * GIB, 1e9, 1e9)
FOOTPRINT = Footprint(
    parameters=1,
    frozen_parameters=0,
    bytes={"parameters": 2 * GIB, "optimizer": 4 * GIB, "carry": 0, "frozen": 0, "batch": 0},
    host=0,
    arguments=2 * GIB,
    idle=4 * GIB,
    narrowed=0,
    rows=4,
)


def row_of(gib, chip=CHIP, footprint=FOOTPRINT, slices=1):
    """Of a program whose compiled form needs so much, or is refused with a message."""

    class Lowered:
        def compile(self):
            if isinstance(gib, str):
                raise jax.errors.JaxRuntimeError(gib)
            sizes = dict.fromkeys(("argument", "output", "alias"), 0) | {"temp": int(gib * GIB)}
            stats = types.SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in sizes.items()})
            return types.SimpleNamespace(memory_analysis=lambda: stats, as_text=lambda: "")

    account = compiled.compile_(Lowered(), "cpu", Flops(4e12, 1e12))
    mesh = make_mesh(MeshConfig(), jax.devices()[:4])
    return plan._facts(account, footprint, mesh, slices, chip)


@pytest.mark.parametrize(
    ("gib", "chip", "verdict", "reason"),
    [
        (10.1, CHIP, plan.FITS, "90% of 15.75 GiB"),  # 4 GiB lie there besides
        (10.3, CHIP, plan.UNKNOWN, "91% of 15.75 GiB"),
        (11.8, CHIP, plan.TOO_LARGE, "100% of 15.75 GiB"),
        (10.3, None, plan.UNKNOWN, "not known"),
        (WHOLE, CHIP, plan.TOO_LARGE, "needs 19.40G of 15.75G"),
        (PART, CHIP, plan.TOO_LARGE, "needs 96.00G of 15.75G"),
        (OUT_OF_MEMORY, CHIP, plan.TOO_LARGE, OUT_OF_MEMORY.strip()),
    ],
)
def test_verdicts(gib, chip, verdict, reason):
    row = row_of(gib, chip)
    assert row["verdict"] == verdict
    assert reason in row["reason"]
    refused = isinstance(gib, str)
    assert (row["bytes"]["peak"] is None) == (row["bytes"]["temporaries"] is None) == refused
    assert (row["roofline"] is None) == (refused or chip is None)
    assert bool(row["help"]) == (verdict != plan.FITS and chip is not None)


def test_a_roofline_of_a_row():
    found = row_of(1.0)["roofline"]
    assert found["compute"] == 4e12 / (4 * 1e12)
    assert found["memory"] == (2 * GIB + 2 * GIB) / 1e9  # arguments; temporaries twice
    assert found["utilization"] == pytest.approx(3e12 / (4 * 1e12 * found["memory"]))


def test_help_names_what_takes_the_memory():
    assert row_of(1.0)["help"] == []
    state, temporaries = row_of(WHOLE)["help"]
    assert state.startswith("Parameters, optimiser and carry take 6 GiB a chip: split over all")
    assert "take about 8 chips" in state
    # 19.4 GiB in all, of which 2 were arguments.
    assert temporaries.startswith("Activations and temporaries take 17.4 GiB a chip: cut a batch")
    sizes = FOOTPRINT.bytes | {"parameters": 10 * GIB}
    (state,) = row_of(4.0, footprint=FOOTPRINT._replace(bytes=sizes, idle=12 * GIB))["help"]
    assert state == (
        "Parameters, optimiser and carry take 14 GiB a chip: --mesh.fsdp 2 leaves 7 GiB a chip."
    )
    # Slices are divided by data alone.
    (state,) = row_of(4.0, footprint=FOOTPRINT._replace(bytes=sizes, idle=12 * GIB), slices=4)[
        "help"
    ]
    assert "take about 8 chips" in state
    frozen = FOOTPRINT._replace(
        bytes=dict.fromkeys(FOOTPRINT.bytes, 0) | {"frozen": 14 * GIB},
        idle=14 * GIB,
        narrowed=7 * GIB,
    )
    (said,) = row_of(0.5, footprint=frozen)["help"]
    assert said.startswith("Frozen models take 14 GiB a chip: bfloat16 leaves 7 GiB a chip; keep")
    few = FOOTPRINT._replace(rows=1)
    assert "split sequences (--mesh.context)" in row_of(PART, footprint=few)["help"][-1]


def test_other_errors_of_the_compiler_come_out_as_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        row_of("INTERNAL: a bug")


def test_a_mesh_that_does_not_divide_is_the_persons_to_put_right():
    with pytest.raises(UserError, match="does not divide the 4 devices"):
        of("cpu:4", mesh=MeshConfig(fsdp=3))


def argv(tmp_path, *names, presets=("laptop",)):
    file = f"{tmp_path}/plans.json"
    return [*names, "--presets", *presets, "--topologies", "cpu:2", "--json", file]


def test_several_modules_and_presets_and_those_that_fail(capsys, tmp_path):
    given = argv(tmp_path, NAME, "experiments.absent", presets=("smoke", "laptop"))
    assert plan.main(given) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: experiments.absent smoke on cpu:2: no module")
    assert "support.toy_experiment laptop, stage pretrain (and finetune) on cpu:2" in captured.out
    rows = json.loads((tmp_path / "plans.json").read_text())
    assert [(row["preset"], row["stage"]) for row in rows] == [
        (preset, stage) for preset in ("smoke", "laptop") for stage in ("pretrain", "finetune")
    ]


def test_a_killed_planning_goes_on_where_it_was(tmp_path, monkeypatch, compilations):
    real = plan._facts

    def dies(*args):
        if (tmp_path / "plans.json").exists():
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(plan, "_facts", dies)
    with pytest.raises(KeyboardInterrupt):
        plan.main(argv(tmp_path, NAME))
    file = tmp_path / "plans.json"
    first = json.loads(file.read_text())
    assert [row["stage"] for row in first] == ["pretrain"]
    monkeypatch.setattr(plan, "_facts", real)
    assert plan.main(argv(tmp_path, NAME)) == 0
    both = json.loads(file.read_text())
    assert both[:1] == first
    assert [row["stage"] for row in both] == ["pretrain", "finetune"]
    compilations.clear()
    assert plan.main(argv(tmp_path, NAME)) == 0
    assert not compilations
    assert json.loads(file.read_text()) == both


def test_a_file_that_holds_no_plans(tmp_path, capsys):
    (tmp_path / "plans.json").write_text("{")
    assert plan.main(argv(tmp_path, NAME)) == 2
    assert "plans.json: not a file of plans" in capsys.readouterr().err


def test_tables_for_people(capsys):
    rows = [
        {"module": "m", "preset": "p", "topology": "v5e:2x2,slices=2", "devices": 8, "slices": 2}
        | {"mesh": "data=8", "stage": stage, "program": "step"}
        | row_of(WHOLE if stage == "c" else 12.0)
        for stage in ("a", "b", "c")
    ]
    plan_tables.show(rows)
    shown = capsys.readouterr().out
    assert "m p, stage a (and b) on v5e:2x2,slices=2 (8 chips, 2 slices, data=8): GiB" in shown
    assert "needs 19.40G of 15.75G" in shown
    assert "step: Parameters, optimiser and carry take 6 GiB" in shown
    assert "Roofline: " in shown
    plan_tables.show([])
    assert "Nothing to plan" in capsys.readouterr().out
