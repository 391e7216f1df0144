"""Merges that look at data: stages, flags, claims by hand, and the merges of tiny specialists."""

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

from experiments.merging import fisher_vs_regmean
from experiments.merging.common import measuring, specialists
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import changed as images_of
from experiments.merging.parts import fisher_report, importance, pairs

SMOKE = fisher_vs_regmean.PRESETS["smoke"]
TINY = dataclasses.replace(
    SMOKE,
    widths=(6, 5),
    fisher_images=16,
    samples=(4, 16),
    adapt_steps=2,
    adapt_batch=4,
)


def models_of(config, alike=False):
    """Random trunks; `alike`, one for all."""
    model, names = config.benchmark.model, config.names
    base, head = specialists.split(config.benchmark, model.init(jax.random.key(0)))
    others = [0 if alike else 1 + i for i in range(len(names))]
    trunks = [specialists.split(config.benchmark, model.init(jax.random.key(i)))[0] for i in others]
    return Models(head, base, dict(zip(names, trunks, strict=True)))


def test_stages_and_what_they_depend_on():
    found = outline(fisher_vs_regmean, SMOKE)
    assert found["merged_1"] == ("pretrained_1", "turned_1", "mirrored_1")
    assert len(found) == SMOKE.seeds * (SMOKE.tasks + 2)
    other = dataclasses.replace(SMOKE, ridge=0.1)
    merged = {name for name in found if name.startswith("merged")}
    assert changed(fisher_vs_regmean, SMOKE, other) == merged


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("fisher-images", "17"),
        ("samples", "0"),
        ("off-diagonal", "0.5"),
        ("density", "2"),
        ("adapt-steps", "0"),
        ("tasks", "1"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value):
    said = refusal(fisher_vs_regmean, "smoke", f"--{flag}", value)
    assert said.startswith(f"{flag.replace('-', '_')}: got ")


def artefact(values):
    """Arrays are rows, as a stage keeps them."""
    rows = {name: x for name, x in values.items() if isinstance(x, np.ndarray)}
    return Made({name: x for name, x in values.items() if name not in rows}, rows)


@pytest.mark.slow
def test_equal_specialists_are_their_merge_and_every_field_is_read(tmp_path):
    """Whatever the method: also the second half of the pipeline, from values to plots."""

    def go(config):
        fisher_vs_regmean.stages(config)
        with compiled_quickly():
            values = fisher_vs_regmean._merged(config, 0, models_of(config, alike=True))
        normalised = {k: v for k, v in values.items() if k.endswith("/normalised")}
        # Nine merges beside those of RegMean, and two of a pair.
        assert len(normalised) == 11 + len(config.samples) * len(config.off_diagonals)
        np.testing.assert_allclose(list(normalised.values()), 100.0, rtol=1e-6)
        made = {f"merged_{seed}": artefact(values) for seed in config.repetitions}
        results = fisher_vs_regmean.report(config, made, tmp_path)
        assert all(path.exists() for path in results.plots.values())
        assert set(results.values["normalised"]) == {"pretrained", *fisher_report.MERGES}

    assert unread_fields(TINY, go) == []


def test_gram_matrices_and_fisher_are_of_the_specialists_own_images():
    models = models_of(TINY)
    trunk = models.specialists["turned"]
    images = images_of(TINY.benchmark, "turned", "train", slice(16))
    with compiled_quickly():
        seen = importance.grams(TINY.benchmark, models.head, trunk, images)
        fisher = importance.fisher(TINY.benchmark, models.head, trunk, images)
        first = fisher_vs_regmean._first(TINY, "turned", 4, 16)
        fewer = importance.grams(TINY.benchmark, models.head, trunk, first)
    x = images["inputs"].reshape(16, -1) / 255.0
    np.testing.assert_allclose(seen["layer_0/kernel"], x.T @ x / 16, rtol=1e-4, atol=1e-6)
    kernel, bias = (np.asarray(trunk["layer_0"][name]) for name in ("kernel", "bias"))
    hidden = np.maximum(x @ kernel + bias, 0)
    np.testing.assert_allclose(seen["layer_1/kernel"], hidden.T @ hidden / 16, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fewer["layer_0/kernel"], x[:4].T @ x[:4] / 4, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(fisher) == jax.tree.structure(trunk)
    assert float(fisher["layer_1"]["kernel"].max()) > 0


def test_pairs_end_in_the_specialists():
    models = models_of(TINY)
    judge = measuring.judge(TINY.benchmark, models.head, models.specialists)
    first, second = models.specialists.values()
    fishers = [jax.tree.map(jnp.ones_like, first), jax.tree.map(lambda x: 1.0 + 0 * x, second)]
    with compiled_quickly():
        found = pairs.measured(models, fishers, judge)
    ends = [judge.normalised(trunk) for trunk in (second, first)]
    for kind in pairs.KINDS:
        np.testing.assert_allclose(found[f"pair/{kind}"][[0, -1]], ends, rtol=1e-5)
        assert found[f"pair/{kind}/normalised"] in found[f"pair/{kind}"]
    # Alike Fisher informations: the plain average.
    np.testing.assert_allclose(found["pair/Fisher"], found["pair/average"], atol=0.5)


def results_of(normalised, few, tmp_path):
    """The report on three seeds with these normalised accuracies, alike for every task and pair."""
    config = dataclasses.replace(SMOKE, seeds=3, samples=(8, 64))
    made = {}
    for i in range(3):
        own = {name: values[i] for name, values in normalised.items()}
        own["RegMean, 64 at 0.9"] = own.pop("RegMean")
        own |= {f"RegMean, {n} at {f}": 80.0 + i for n in (8, 64) for f in (0.0, 1.0)}
        own["RegMean, 8 at 0.9"] = few[i]
        values = {f"{name}/normalised": x for name, x in own.items()}
        values |= {f"{name}/{t}": 90.0 + i for name in ("specialist", *own) for t in config.names}
        values |= {f"pair/{kind}/normalised": normalised[kind][i] for kind in pairs.KINDS}
        curves = {f"pair/{kind}": np.full(len(pairs.SHARES), 80.0 + i) for kind in pairs.KINDS}
        made[f"merged_{i}"] = artefact(values | curves)
    return fisher_vs_regmean.report(config, made, tmp_path)


def test_claims_on_results_made_by_hand(tmp_path):
    low, high = (70.0, 71.0, 72.0), (80.0, 81.5, 82.0)
    order = ("pretrained", "average", "task arithmetic", "TIES", "Fisher", "RegMean")
    steps = {name: tuple(x + 3.0 * i for x in low) for i, name in enumerate(order)}
    adapted = {name: high for name in fisher_report.MERGES if name.startswith("AdaMerging")}
    good = steps | adapted | {"Fisher, validated": high}
    good |= {fisher_report.BY_LAYER: tuple(x + 8 for x in high)}
    results = results_of(good, (85.0, 86.5, 87.0), tmp_path)
    assert verdicts(fisher_vs_regmean, results) == ["holds"] * 10
    assert verdicts(fisher_vs_regmean, results, "smoke") == ["not tested"] * 10
    bad = dict.fromkeys(good, low) | {"average": high, "task arithmetic": high, "TIES": high}
    bad |= {"Fisher": tuple(x - 1.5 for x in high), "RegMean": tuple(x - 5.0 for x in high)}
    bad |= {"AdaMerging, by task": tuple(x - 2.5 for x in high)}
    results = results_of(bad, (70.0, 70.5, 72.0), tmp_path)
    assert verdicts(fisher_vs_regmean, results) == ["fails"] * 10
    # A little below RegMean is about as good.
    near = good | {fisher_report.BY_LAYER: tuple(x - 1.0 for x in good["RegMean"])}
    near |= {"AdaMerging, by task": low}
    assert verdicts(fisher_vs_regmean, results_of(near, low, tmp_path))[6] == "holds"
