"""Steps at scale: presets, a run of two steps, what is refused, and the page of plans."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import compiled_quickly, outline, refusal

from experiments.scaling import language_models
from kd_jax.launch import plan, run
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import placed
from tools import scaling

NAME = language_models.__name__
SMOKE = language_models.PRESETS["smoke"]
SMALL = dataclasses.replace(
    SMOKE,
    model=dataclasses.replace(SMOKE.model, width=16, depth=1, heads=2, mlp=32, vocab=64),
    teacher=dataclasses.replace(SMOKE.model, width=32, depth=1, mlp=32, vocab=64),
    length=8,
    steps=2,
    log_every=1,
)


@pytest.mark.parametrize("preset", language_models.PRESETS)
def test_every_method_sees_the_same_tokens(preset):
    config = language_models.PRESETS[preset]
    assert outline(language_models, config) == {"npo": (), "dpo": (), "kd": ()}
    for stage in language_models.stages(config):
        batch = stage.build({}).batch
        inputs = [x for path, x in jax.tree.leaves_with_path(batch) if "inputs" in str(path)]
        assert sum(x.size for x in inputs) == config.rows * config.length


def test_a_row_of_random_text_is_the_same_in_any_process():
    source = language_models.stages(SMALL)[0].build({}).batches
    whole, part = source(3, slice(0, 8)), source(3, slice(2, 6))
    for name, x in whole["retain"].items():
        np.testing.assert_array_equal(part["retain"][name], x[2:6])
    forget = whole["forget"]
    assert not np.array_equal(forget["inputs"], whole["retain"]["inputs"])
    np.testing.assert_array_equal(forget["inputs"][:, 1:], forget["targets"][:, :-1])
    assert not np.array_equal(forget["inputs"], source(4, slice(0, 8))["forget"]["inputs"])


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_and_measures_its_speed(tmp_path):
    def execute(config):
        run.execute(language_models, NAME, "smoke", config, tmp_path)

    with compiled_quickly():
        assert unread_fields(SMALL, execute) == []
    speed = json.loads((tmp_path / "results.json").read_text())["values"]["speed"]
    assert speed.keys() == {"npo", "dpo", "kd"}
    for found in speed.values():
        tokens = SMALL.rows * SMALL.length
        assert found["tokens_per_second"] == pytest.approx(tokens / found["step_seconds"])


def test_frozen_models_may_lie_in_the_hosts_memory():
    mesh = make_mesh(MeshConfig())
    for stage, name in zip(
        language_models.stages(dataclasses.replace(SMALL, frozen_on_host=True)),
        ("reference", "reference", "teacher"),
        strict=True,
    ):
        frozen = placed(stage.name, stage.build({}), mesh).frozen[name]
        assert frozen["layers"]["attn"]["q"]["kernel"].sharding.memory_kind == "pinned_host"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "npo", "sft"], "methods: got sft"),
        (["--rows", "12", "--microbatches", "4"], "rows: got 12, takes multiples of 8"),
        (["--length", "0"], "length: got 0"),
    ],
)
def test_what_is_refused(flags, message):
    assert message in refusal(language_models, "smoke", *flags)


@pytest.mark.slow
def test_the_page_shows_every_row_and_what_is_missing(monkeypatch):
    config = dataclasses.replace(SMALL, methods=("npo",))
    (row,) = plan.of(language_models, NAME, "7b", config, "cpu:8")
    case = scaling.Case("7b", "cpu:8", 1, 4)
    monkeypatch.setattr(scaling, "CASES", (case,))
    assert scaling.missing([row]) == [(case, "dpo"), (case, "kd")]
    (line,) = [x for x in scaling.page([row]).splitlines() if x.startswith("| cpu:8")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["cpu:8 (8)", "data=8", "4", "npo"]
    assert cells[5] == "unknown"
    too_large = row | {"verdict": "does not fit", "reason": "needs 2G of 1G", "collectives": None}
    too_large["bytes"] = row["bytes"] | {"temporaries": None, "peak": None}
    assert "does not fit: needs 2G of 1G" in scaling.page([too_large])


def test_the_page_in_docs_is_of_the_rows_beside_it():
    rows = json.loads((scaling.DOCS / "scaling.json").read_text())
    assert scaling.missing(rows) == []
    assert (scaling.DOCS / "scaling.md").read_text() == scaling.page(rows)
