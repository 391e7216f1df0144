"""Twin-Merging's experiment: stages, flags, the router, claims by hand, tiny specialists."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, compiled_quickly, outline, refusal, verdicts

from experiments.merging import twin_density
from experiments.merging.common import specialists
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import Examples, examples
from experiments.merging.parts import router, twin_report
from kd_jax.merging.twin import combine, twins

SMOKE = twin_density.PRESETS["smoke"]
TINY = dataclasses.replace(SMOKE, widths=(6, 5), densities=(0.5, 1.0), router_passes=2)


def models_of(config):
    model, names = config.benchmark.model, config.names
    made = [specialists.split(config.benchmark, model.init(jax.random.key(i))) for i in range(4)]
    trunks = [trunk for trunk, _ in made]
    return Models(made[0][1], trunks[0], dict(zip(names, trunks[1:], strict=False)))


def test_stages_and_what_they_depend_on():
    found = outline(twin_density, SMOKE)
    assert found["merged_1"] == ("pretrained_1", "turned_1", "mirrored_1")
    merged = {name for name in found if name.startswith("merged")}
    other = dataclasses.replace(SMOKE, router_passes=4)
    assert changed(twin_density, SMOKE, other) == merged


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--densities", "0"), "densities: got "),
        (("--densities", "0.1", "1.5"), "densities: got 1.5, takes up to 1"),
        (("--densities", "0.1", "0.1"), "densities: got 0.1 0.1"),
        (("--router-passes", "0"), "router_passes: got "),
        (("--scale", "0"), "scale: got "),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert refusal(twin_density, "smoke", *argv).startswith(said)


@pytest.mark.slow
def test_known_tasks_at_density_one_are_the_specialists_and_every_field_is_read(tmp_path):
    def go(config):
        twin_density.stages(config)
        with compiled_quickly():
            values = twin_density._merged(config, 0, models_of(config))
        np.testing.assert_allclose(values["Twin at 1, task known/normalised"], 100.0, rtol=1e-6)
        assert values["Twin at 0.5, task known/normalised"] != pytest.approx(100.0, abs=1e-3)
        # Shared, and two specialists' vectors and factors, or all of their matrices.
        kept = {0.5: 2 * ((64 + 6) * 3 + (6 + 5) * 2 + 11), 1.0: 2 * (64 * 6 + 6 * 5 + 11)}
        base = 64 * 6 + 6 * 5 + 11
        for density, numbers in kept.items():
            share = 100 * (base + numbers) / (2 * base)
            np.testing.assert_allclose(values[f"stored/{density:g}"], share)
        np.testing.assert_allclose(
            [sum(values[f"routed/{t}/{to}"] for to in config.names) for t in config.names], 1.0
        )
        made = {f"merged_{seed}": Made(values) for seed in config.repetitions}
        results = twin_density.report(config, made, tmp_path)
        assert all(path.exists() for path in results.plots.values())

    assert unread_fields(TINY, go) == []


@pytest.mark.slow
def test_every_example_has_the_model_of_its_own_weights(monkeypatch):
    monkeypatch.setattr(router, "TOGETHER", 2)
    models = models_of(TINY)
    benchmark, thetas = TINY.benchmark, list(models.specialists.values())
    test = examples(benchmark, TINY.names, "test", slice(5))
    found = twins(models.base, thetas, density=0.5)
    each = 2.0 * jax.random.normal(jax.random.key(1), (2, 5, 2))

    def guess(t, i):
        trunk = combine(found.shared, found.exclusive, each[t, i])
        whole = {**trunk, benchmark.head: models.head}
        output = benchmark.model.apply(whole, {"inputs": test.inputs[t, i : i + 1]})
        return int(output.head.logits().argmax())

    # Labels are what the models say, but for the first of each task.
    targets = np.array([[guess(t, i) for i in range(5)] for t in range(2)])
    targets[:, 0] = (targets[:, 0] + 1) % 10
    reached = router.routed(benchmark, models.head, found, each, Examples(test.inputs, targets))
    np.testing.assert_allclose(reached, [80.0, 80.0], rtol=1e-5)
    # Other weights, other models.
    other = router.routed(benchmark, models.head, found, -each, Examples(test.inputs, targets))
    assert not np.allclose(other, reached)


@pytest.mark.slow
def test_the_router_learns_what_can_be_told_apart_and_keeps_its_best_pass():
    rng = np.random.default_rng(0)
    centres = 3.0 * rng.standard_normal((3, 1, 4))
    train, held_out = (
        jnp.asarray(centres + rng.standard_normal((3, 20, 4)), jnp.float32) for _ in range(2)
    )

    def right(passes, rate=0.01):
        learning = router.Learning(rate, passes, 16)
        each = router.weights(router.trained(train, held_out, learning, seed=0), held_out)
        np.testing.assert_allclose(each.sum(-1), 1.0, rtol=1e-5)
        return float((each.argmax(-1) == jnp.arange(3)[:, None]).mean())

    assert right(20) > 0.9
    # At a rate that is too high later passes are worse; the best of the first so many is kept.
    assert right(5, rate=3.0) >= right(3, rate=3.0) > 0.5


def results_of(twin, others, tmp_path):
    config = dataclasses.replace(SMOKE, seeds=3, densities=(0.05, 0.1, 1.0))
    made = {}
    for i in range(3):
        names = [f(d) for f in (twin_report.twin, twin_report.known) for d in config.densities]
        normalised = dict.fromkeys(names, twin[i])
        normalised |= dict.fromkeys(("pretrained", *twin_report.PLAIN), others[i])
        normalised[twin_report.twin(0.05)] = normalised[twin_report.twin(1.0)] - 2.0 + 0.1 * i
        values = {f"{name}/normalised": x for name, x in normalised.items()}
        tasks = config.names
        values |= {f"{n}/{t}": 90.0 + i for n in ("specialist", "router", *values) for t in tasks}
        values |= {f"{n}/{t}": 90.0 + i for n in normalised for t in tasks}
        values |= {f"routed/{t}/{to}": 0.5 for t in tasks for to in tasks}
        values |= {f"stored/{d:g}": 50.0 for d in config.densities} | {"router/all": 95.0}
        made[f"merged_{i}"] = Made(values)
    return twin_density.report(config, made, tmp_path)


def test_claims_on_results_made_by_hand(tmp_path):
    high, low = (97.0, 98.5, 98.0), (80.0, 82.0, 81.0)
    results = results_of(high, low, tmp_path)
    assert verdicts(twin_density, results) == ["holds"] * 5
    assert verdicts(twin_density, results, "smoke") == ["not tested"] * 5
    assert verdicts(twin_density, results_of(low, high, tmp_path)) == [
        *["fails"] * 3,
        "holds",
        "fails",
    ]
    normalised = dict(results.values["normalised"])
    normalised[twin_report.twin(0.05)] = [99.0, 99.5, 99.9]
    flipped = results._replace(values=results.values | {"normalised": normalised})
    assert verdicts(twin_density, flipped)[3] == "fails"
