"""Merges at scale: presets, a run, what is refused, and plans for chips that are not there."""

import dataclasses
import json

import pytest
from support.config_reads import unread_fields
from support.experiment_checks import compiled_quickly, outline, refusal

from experiments.scaling import merges
from kd_jax.launch import plan, run
from kd_jax.launch.mesh import MeshConfig

NAME = merges.__name__
SMOKE = merges.PRESETS["smoke"]
SMALL = dataclasses.replace(
    SMOKE,
    model=dataclasses.replace(SMOKE.model, width=16, heads=2, mlp=32, vocab=64),
    methods=("slerp", "ties"),
)


@pytest.mark.parametrize("preset", merges.PRESETS)
def test_presets_have_a_stage_a_method(preset):
    config = merges.PRESETS[preset]
    assert outline(merges, config) == dict.fromkeys(config.methods, ())
    assert preset == "smoke" or set(config.methods) == set(merges.METHODS)


@pytest.mark.slow
def test_a_run_reads_every_field_and_measures_its_speed(tmp_path):
    def execute(config):
        run.execute(merges, NAME, "smoke", config, tmp_path)

    with compiled_quickly():
        assert unread_fields(SMALL, execute) == []
    found = json.loads((tmp_path / "results.json").read_text())["values"]["merges"]
    assert found.keys() == {"slerp", "ties"}
    for method, trees in (("slerp", 3), ("ties", 4)):  # read and written
        gigabytes = trees * 2 * found[method]["parameters"] / 1e9
        assert found[method]["gigabytes_per_second"] == pytest.approx(
            gigabytes / found[method]["seconds"]
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "ties", "fisher"], "methods: got fisher"),
        (
            ["--methods", "model_stock", "--models", "1"],
            "models: got 1, model_stock takes at least 2",
        ),
        (["--repeats", "0"], "repeats: got 0"),
    ],
)
def test_what_is_refused(flags, message):
    assert message in refusal(merges, "smoke", *flags)


@pytest.mark.slow
def test_the_result_takes_the_memory_of_the_base_and_is_split_as_it_is():
    config = dataclasses.replace(SMALL, mesh=MeshConfig(data=1, fsdp=4, tensor=2))
    rows = plan.of(merges, NAME, "small", config, "cpu:8")
    one = plan.of(merges, NAME, "small", dataclasses.replace(SMALL, mesh=MeshConfig()), "cpu:1")
    for split, whole in zip(rows, one, strict=True):
        for row in (split, whole):  # a table of pointers
            assert row["bytes"]["outputs"] < 0.05 * row["bytes"]["frozen"]
        assert split["bytes"]["frozen"] < whole["bytes"]["frozen"] / 7
        assert set(split["collectives"]) <= {"all-reduce"}


@pytest.mark.libtpu
@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_a_70b_merge_is_compiled_for_64_chips(method):
    config = dataclasses.replace(merges.PRESETS["70b"], methods=(method,))
    (row,) = plan.of(merges, NAME, "70b", config, "v5p:4x4x4")
    assert row["verdict"] == "fits"
    # Of the 95 GiB of a chip: the models' shards, task vectors in float32 and little else.
    assert row["bytes"]["peak"] < 24 * 2**30
