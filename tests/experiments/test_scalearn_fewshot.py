"""Adapters combined for a task of few images: stages, claims, what is trained, a tiny run."""

import dataclasses

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

from experiments.merging import scalearn_fewshot
from experiments.merging.parts import adapted, fewshot
from kd_jax.launch import run
from kd_jax.models import residual_mlp

SMOKE = scalearn_fewshot.PRESETS["smoke"]
LAPTOP = scalearn_fewshot.PRESETS["laptop"]


def test_stages_and_that_the_target_is_no_source():
    found = outline(scalearn_fewshot, LAPTOP)
    assert len(found) == LAPTOP.seeds * (1 + 4 + 7)
    for seed in LAPTOP.repetitions:
        four = tuple(f"adapter_{task}_{seed}" for task in fewshot.sources_of(seed))
        assert len(set(four)) == 4 and f"adapter_{fewshot.target(seed)}_{seed}" not in found
        assert found[f"own_{seed}"] == (f"pretrained_{seed}",)
        for method in scalearn_fewshot.METHODS:
            assert found[f"{method}_{seed}"] == (f"pretrained_{seed}", *four, f"own_{seed}")
    assert {fewshot.target(seed) for seed in LAPTOP.repetitions} == set(fewshot.POOL)


def test_what_a_stage_depends_on():
    every = set(outline(scalearn_fewshot, SMOKE))

    def moved(**change):
        return changed(scalearn_fewshot, SMOKE, dataclasses.replace(SMOKE, **change))

    assert moved(seeds=2) == set()
    trunks = {name for name in every if name.startswith("pretrained")}
    adapters = {name for name in every if name.startswith("adapter")}
    assert moved(few=60) == every - trunks - adapters
    assert moved(adapter_steps=7) >= adapters and not moved(adapter_steps=7) & trunks
    assert moved(width=16) == every


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("few", "8"),
        ("dropout", "1"),
        ("seeds", "1"),
        ("adapter", "0"),
        ("methods", "fusion fusion"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value):
    said = refusal(scalearn_fewshot, "smoke", f"--{flag}", *value.split())
    assert said.startswith(f"{flag}: got ")


SIZES = residual_mlp.ResidualMLPConfig(inputs=64, width=6, depth=3, hidden=5, classes=10)
KEY = jax.random.key(0)
IMAGES = {"inputs": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)}
TRUNK = residual_mlp.residual_mlp(SIZES).init(KEY)


def adapters(count):
    one = adapted.single(2).init
    made = [one(jax.random.key(i), 3, 0, 6) for i in range(count)]
    return [jax.tree.map(_shifted, tree) for tree in made]


def _shifted(x):
    """Away from 0, by other amounts in each dimension: the stream's norm forgets a constant."""
    return x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)


def logits(combination, stacked, own=None):
    start = adapted.start(combination, SIZES, 5, KEY)
    trained = start if own is None else {**start, "own": own}
    weights = adapted.assemble(combination, TRUNK, stacked, trained)
    return adapted.model(SIZES, combination).apply(weights, IMAGES).head.logits()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "numbers", "vectors_shared", "numbers_shared"])
def test_scales_that_pick_an_adapter_are_that_adapter(name):
    combination = fewshot.combinations(2, 0.3)[name]
    shape = combination.init(KEY, 3, 5, 6).shape
    made = adapters(5)
    picked = logits(combination, adapted.stacked(made), jnp.zeros(shape).at[:, 2].set(1.0))
    alone = logits(adapted.single(2), {}, made[2])
    np.testing.assert_allclose(picked, alone, rtol=1e-4, atol=1e-5)
    plain = residual_mlp.residual_mlp(SIZES).apply(TRUNK, IMAGES).head.logits()
    assert np.abs(alone - plain).max() > 1e-2


@pytest.mark.slow
def test_of_equal_adapters_average_and_fusion_are_one():
    (one,) = adapters(1)
    equal, alone = adapted.stacked([one] * 5), logits(adapted.single(2), {}, one)
    for combination in (adapted.average(), adapted.fusion()):
        np.testing.assert_allclose(logits(combination, equal), alone, rtol=1e-4, atol=1e-5)


def test_fusion_by_hand():
    x = np.asarray(jax.random.normal(KEY, (4, 6)))
    keys = jax.random.split(KEY, 3)
    own = {
        name: np.asarray(jax.random.normal(k, (6, 6)))
        for name, k in zip(("query", "key", "value"), keys, strict=True)
    }
    one_place = jax.tree.map(lambda leaf: leaf[0], adapted.stacked(adapters(5)))
    found = adapted.fusion().after({"own": own, "adapters": one_place}, x, None)
    single = adapted.single(2).after
    outputs = [
        np.asarray(single({"own": jax.tree.map(lambda leaf, n=n: leaf[n], one_place)}, x, None)) - x
        for n in range(5)
    ]
    scores = np.stack([((x @ own["query"]) * (o @ own["key"])).sum(-1) for o in outputs])
    shares = np.exp(scores - scores.max(0)) / np.exp(scores - scores.max(0)).sum(0)
    expected = x + sum(
        s[:, None] * (o @ own["value"]) for s, o in zip(shares, outputs, strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_how_many_numbers_are_trained():
    counts = {name: scalearn_fewshot.numbers(LAPTOP, name) for name in LAPTOP.combinations}
    d, places, n = 64, 4, 5
    assert counts == {
        "own": places * (2 * d * 8 + 8 + d),
        "vectors": places * n * d,
        "numbers": places * n,
        "vectors_shared": n * d,
        "numbers_shared": n,
        "fusion": places * 3 * d * d,
        "average": 0,
    }


def test_few_images_of_the_target_and_what_is_frozen():
    found = {stage.name: stage for stage in scalearn_fewshot.stages(SMOKE)}
    trunk = Planned(found["pretrained_0"].build({}))
    made = {"pretrained_0": trunk}
    for name in found["vectors_0"].needs[1:]:
        made[name] = Planned(found[name].build({"pretrained_0": trunk}))
    training = found["vectors_0"].build(made)
    rows = slice(0, training.batch_size)
    seen = np.concatenate([training.batches(step, rows)["inputs"] for step in range(10)])
    assert len(np.unique(seen, axis=0)) <= SMOKE.few
    assert set(training.frozen.abstract) == {"trunk", *(f"adapter_{i}" for i in range(5))}
    assert training.weights.abstract["own"].shape == (SMOKE.depth, 5, SMOKE.width)


class Planned:
    def __init__(self, training):
        self.weights = lambda: training.weights


def ends(accuracies):
    return {
        f"{name}_{seed}": Made(history=[{"step": 9, "held_out/accuracy": value + 0.01 * seed}])
        for name, value in accuracies.items()
        for seed in (0, 1)
    }


@pytest.mark.slow
def test_claims_on_accuracies_made_by_hand(tmp_path):
    config = dataclasses.replace(SMOKE, methods=scalearn_fewshot.METHODS)
    good = {"own": 70, "fusion": 74, "average": 69} | dict.fromkeys(
        ("vectors", "numbers", "vectors_shared", "numbers_shared"), 74
    )
    results = scalearn_fewshot.report(config, ends(good), tmp_path)
    assert verdicts(scalearn_fewshot, results) == ["holds"] * 4
    assert results.tables[0].rows[1]["less the own adapter"].estimate == pytest.approx(4)
    assert all(path.exists() for path in results.plots.values())
    bad = good | {"vectors": 68, "numbers_shared": 68}
    results = scalearn_fewshot.report(config, ends(bad), tmp_path)
    assert verdicts(scalearn_fewshot, results) == ["fails"] * 4
    results = scalearn_fewshot.report(SMOKE, ends(good), tmp_path)
    assert verdicts(scalearn_fewshot, results) == ["holds", "not tested", "not tested", "holds"]


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(
        SMOKE, methods=("vectors",), depth=1, width=4, hidden=4, adapter=2, pretraining_steps=2,
        adapter_steps=2, steps=2,
    )  # fmt: skip

    def go(config):
        with compiled_quickly():
            results = run.execute(
                scalearn_fewshot, scalearn_fewshot.__name__, "smoke", config, tmp_path / "run"
            )
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
