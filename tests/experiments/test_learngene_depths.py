"""Genes and their descendants: stages, starts, lines through layers, claims on results by hand."""

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
from support.linear import assert_trees_close

from experiments.distillation import learngene_depths
from experiments.distillation.parts import expansions, learngene_report
from kd_jax.launch import run
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.launch.weights import from_arrays
from kd_jax.models.learngene import in_stages, on_a_line
from kd_jax.models.vit import ViTConfig
from kd_jax.types import Model

SMOKE, LAPTOP = (learngene_depths.PRESETS[name] for name in ("smoke", "laptop"))
NAME = learngene_depths.__name__
TAUGHT = ("teacher", "teacher_outputs")
SIZES = ViTConfig(image=4, patch=2, channels=1, width=4, depth=3, heads=2, mlp=6, classes=3)
KEY = jax.random.key(0)


def test_ancestors_first_then_descendants_of_each_depth():
    found = outline(learngene_depths, LAPTOP)
    expected = {"teacher": (), "teacher_outputs": ("teacher",)}
    expected |= {f"genes_{kind}": TAUGHT for kind in ("line", "stages", "block")}
    expected |= {"ordinary": (), "lines": ("ordinary",)}
    for depth in LAPTOP.depths:
        expected[f"random_{depth}"] = ()
        expected[f"shuffled_{depth}"] = ("genes_stages",)
        expected |= {f"{kind}_{depth}": (f"genes_{kind}",) for kind in ("line", "stages", "block")}
    assert found == expected
    few = {"teacher", "teacher_outputs", "genes_line", "line_2"}
    assert set(outline(learngene_depths, SMOKE)) == few


def test_what_stages_depend_on():
    every = set(outline(learngene_depths, LAPTOP))
    shared = {"ordinary", "lines"}
    free = {f"random_{depth}" for depth in LAPTOP.depths}
    for change, expected in (
        ({"pictures": dataclasses.replace(LAPTOP.pictures, folder="elsewhere")}, set()),
        (
            {"learn": dataclasses.replace(LAPTOP.learn, rate=1e-4)},
            {name for name in every if name.rpartition("_")[2].isdigit()},
        ),
        (
            {"learn_genes": dataclasses.replace(LAPTOP.learn_genes, rate=1e-4)},
            every - {"teacher", "teacher_outputs"} - free,
        ),
        (
            {"learn_teacher": dataclasses.replace(LAPTOP.learn_teacher, rate=1e-4)},
            every - shared - free,
        ),
        (
            {"stages": 2},
            {n for n in every if n.startswith(("stages", "shuffled"))} | {"genes_stages"},
        ),
        ({"seeds": 3}, every - {"teacher", "teacher_outputs"}),
    ):
        config = dataclasses.replace(LAPTOP, **change)
        assert changed(learngene_depths, LAPTOP, config) == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--depths", "2", "2"), "depths: got 2 2, takes each once"),
        (("--depths", "0"), "depths: got (0,), takes positive"),
        (("--starts", "line", "line"), "starts: got line line, takes each once"),
        (("--stages", "3"), "stages: got 3, takes from 2 up to the smallest depth, 2"),
        (("--stages", "1"), "stages: got 1, takes from 2"),
        (("--ancestor.depth", "2"), "ancestor.depth: got 2, takes at least 3"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(learngene_depths, "smoke", *argv)


def test_stages_are_as_even_as_they_can_be_and_the_shuffle_keeps_none_in_its_place():
    assert expansions.even(6, 3) == (2, 2, 2)
    assert expansions.even(7, 3) == (3, 2, 2)
    assert expansions.even(4, 1) == (4,)
    genes = {"shared": 0, "stage_0": "a", "stage_1": "b", "stage_2": "c"}
    found = expansions.shuffled(genes)
    assert found == {"shared": 0, "stage_0": "b", "stage_1": "c", "stage_2": "a"}


@pytest.mark.slow
def test_an_ancestor_is_its_network_on_expanded_genes(monkeypatch):
    # A network that says which weights it was given.
    monkeypatch.setattr(
        expansions, "network", lambda sizes: Model(lambda key: {}, lambda params, inputs: params)
    )
    for genes, expand in (
        (expansions.line(SIZES), lambda g: on_a_line(g, 3)),
        (expansions.shared(SIZES, 2), lambda g: in_stages(g, (2, 1))),
        (expansions.shared(SIZES, 1), lambda g: in_stages(g, (3,))),
    ):
        model = expansions.ancestor(SIZES, genes)
        params = model.init(KEY)
        assert_trees_close(model.apply(params, {}), expand(params))


@pytest.mark.slow
def test_descendants_start_from_the_genes_of_their_seed():
    config = dataclasses.replace(SMOKE, ancestor=SIZES, starts=LAPTOP.starts)
    every = {}
    for kind, genes in learngene_depths.genes_of(config).items():
        seeds = [genes.init(jax.random.key(s)) for s in range(2)]
        tree = {"model": jax.tree.map(lambda *x: jnp.stack(x), *seeds), "state": {}}
        every[f"genes_{kind}"] = (seeds, Weighed(tree))
    found = {name: artefact for name, (_, artefact) in every.items()}
    mesh = make_mesh(MeshConfig())
    for start, expand in (
        ("line", lambda g: on_a_line(g, 4)),
        ("stages", lambda g: in_stages(g, (2, 2))),
        ("shuffled", lambda g: in_stages(expansions.shuffled(g), (2, 2))),
        ("block", lambda g: in_stages(g, (4,))),
    ):
        made = materialise(learngene_depths._descendant(config, start, 4, found).weights, mesh)
        seeds, _ = every[f"genes_{'stages' if start == 'shuffled' else start}"]
        for s in range(2):
            assert_trees_close(jax.tree.map(lambda x, s=s: x[s], made), expand(seeds[s]))


class Weighed:
    def __init__(self, tree):
        self.weights = lambda: from_arrays(tree)


def test_r2_of_lines_through_layers():
    genes = expansions.line(SIZES).init(KEY)
    found = expansions.blocks(on_a_line(genes, 5))
    assert set(found) == {f"attn/{p}/kernel" for p in "qkvo"} | {
        "mlp/up/kernel",
        "mlp/down/kernel",
    }
    assert found["mlp/up/kernel"].shape == (5, 4, 6)
    assert expansions.line_r2(list(found.values())) == pytest.approx(1.0)
    # By hand: 0, 0, 3 has mean 1, squares 6, slope 1.5, of which the line takes 4.5.
    assert expansions.line_r2([np.array([0.0, 0.0, 3.0])]) == pytest.approx(0.75)
    drawn = np.random.default_rng(0).normal(size=(6, 20_000))
    assert expansions.line_r2([drawn]) == pytest.approx(1 / 5, abs=0.01)
    # Of two arrays it is over all weights together.
    both = [np.array([0.0, 0.0, 3.0]), np.array([[0.0], [2.0], [0.0]])]
    assert expansions.line_r2(both) == pytest.approx(4.5 / (6 + 8 / 3))


STORED = learngene_report.Stored({"line": 20, "stages": 30, "block": 10}, {2: 100, 3: 150})
GOOD = {"random": 50.0, "block": 60.0, "shuffled": 65.0, "stages": 70.0, "line": 72.0}
BAD = {"random": 75.0, "block": 74.0, "shuffled": 73.0, "stages": 72.0, "line": 71.0}


def trained(accuracy, before=10.0):
    return Made(
        values={"steps": 9},
        rows={
            f"{step}/test/{name}": np.array([value, value + 0.1])
            for step, value in ((0, before), (9, accuracy))
            for name in ("accuracy", "nll", "predicted")
        },
    )


def made(ends, r2, starts=LAPTOP.starts):
    found = {"teacher": trained(88.0)} | {
        name: trained(80.0) for name in learngene_report.ANCESTORS
    }
    found |= {f"{s}_{d}": trained(ends[s] + d, 20.0) for s in starts for d in (2, 3)}
    if r2 is not None:
        rows = {
            f"{kind}/{kernel}": np.array([x, x + 0.001])
            for kind, x in r2.items()
            for kernel in ("attn/q/kernel", "all")
        }
        found["lines"] = Made(rows=rows)
    return found


def test_claims_on_results_made_by_hand():
    r2 = {"trained": 0.4, "drawn": 0.2}
    found = learngene_report.measured(LAPTOP.starts, STORED, 6, made(GOOD, r2))
    assert verdicts(learngene_depths, found) == ["holds"] * 5
    assert found.values["accuracy"]["line"] == {"2": [74.0, 74.1], "3": [75.0, 75.1]}
    assert found.values["before"]["line"]["2"] == [20.0, 20.1]
    assert found.values["teacher"] == 88.0
    rows = {row["start"]: row for row in found.tables[0].rows}
    assert rows["a line (TLEG)"]["numbers kept"] == 20
    assert rows["stages, shuffled"]["of a network a depth (%)"] == 12.0
    assert found.tables[2].title.endswith("0.2 is that of independent layers")
    turned = {"trained": 0.2, "drawn": 0.4}
    found = learngene_report.measured(LAPTOP.starts, STORED, 6, made(BAD, turned))
    assert verdicts(learngene_depths, found) == ["fails"] * 5


def test_what_was_not_run_is_neither_tested_nor_drawn(tmp_path):
    starts = ("random", "line")
    found = learngene_report.results(starts, STORED, 6, made(GOOD, None, starts), tmp_path)
    assert verdicts(learngene_depths, found) == ["holds"] + ["not tested"] * 4
    assert set(found.plots) == {"accuracy", "before"}
    found = learngene_report.results(
        starts, STORED, 6, made(GOOD, {"trained": 0.4, "drawn": 0.2}, starts), tmp_path
    )
    assert set(found.plots) == {"accuracy", "before", "r2"}
    assert all(Path(file).exists() for file in found.plots.values())


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path):
    two = dataclasses.replace(SMOKE.learn, steps=2)
    config = dataclasses.replace(
        SMOKE, learn=two, learn_genes=two, learn_teacher=two, starts=LAPTOP.starts, scratch=True
    )

    def go(config):
        with compiled_quickly():
            found = run.execute(learngene_depths, NAME, "smoke", config, tmp_path / "run")
        assert {c["verdict"] for c in found["claims"]} == {"not tested"}
        assert set(found["values"]["accuracy"]) == set(learngene_report.STARTS)
        assert 0 < found["values"]["r2"]["trained"]["all"][0] < 1

    assert unread_fields(config, go) == []
