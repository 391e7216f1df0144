"""The synthetic study of NPO: stages, commands, every method against NumPy, claims, a tiny run."""

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
    help_of,
    outline,
    refusal,
    verdicts,
)

from experiments.unlearning import npo_synthetic
from experiments.unlearning.synthetic import study, synthetic_report
from experiments.unlearning.synthetic.study import METHODS
from kd_jax.launch import cli, run
from kd_jax.launch.claims import Results
from kd_jax.launch.mesh import make_mesh

SMOKE, LAPTOP = npo_synthetic.PRESETS["smoke"], npo_synthetic.PRESETS["laptop"]
NAME = npo_synthetic.__name__
SMALL = study.Sizes(inputs=4, features=6, forget=5, retain=9, test=7)


def test_stages():
    expected = dict.fromkeys(("gap_1", "gap_0", "sweep", "divergence"), ())
    assert outline(npo_synthetic, LAPTOP) == expected


def test_what_a_stage_depends_on():
    def moved(**fields):
        return changed(npo_synthetic, SMOKE, dataclasses.replace(SMOKE, **fields))

    assert moved(log_every=3) == set()
    assert moved(steps=200) == {"gap_1", "gap_0"}
    assert moved(sweep_steps=200) == {"sweep"}
    assert moved(every=50) == {"gap_1", "gap_0", "sweep"}
    assert moved(diverging_steps=2000) == {"divergence"}
    assert moved(forget=3) == {"gap_1", "gap_0", "sweep"}
    assert moved(seeds=3) == {"gap_1", "gap_0", "sweep", "divergence"}


def test_the_command_line(capsys):
    assert "--sweep-steps" in help_of(npo_synthetic, "laptop", capsys)
    command = cli.parse(npo_synthetic, NAME, ["laptop", "--seeds", "5"])
    assert command.config == dataclasses.replace(LAPTOP, seeds=5)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seeds", "1"),
        ("forget", "0"),
        ("test", "0"),
        ("features", "0"),
        ("learning-steps", "0"),
        ("steps", "30"),
        ("sweep-steps", "0"),
        ("sweep-steps", "30"),
        ("every", "0"),
        ("diverging-steps", "100"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value):
    name = flag.replace("-", "_")
    assert refusal(npo_synthetic, "smoke", f"--{flag}", value).startswith(f"{name}: got ")


# The study, against a second implementation: NumPy in float64, with gradients written by hand.


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def log_prob(z, y):
    """log p(y) for logits z of the class 1."""
    return -np.logaddexp(0, -(2 * y - 1) * z)


def divergence(ours, theirs, features):
    """Mean KL(theirs || ours)."""
    a, b = features @ theirs, features @ ours
    p = sigmoid(a)
    return np.mean(
        p * (log_prob(a, 1) - log_prob(b, 1)) + (1 - p) * (log_prob(a, 0) - log_prob(b, 0))
    )


def slope_forget(name, z, z0, y, positives, beta):
    """d loss / d z of each forget sample: log p(y) has the derivative y - p."""
    up, p = y - sigmoid(z), sigmoid(z)
    if name == "ga":
        return up
    if name == "idk":
        return p - positives
    ratio = log_prob(z, y) - log_prob(z0, y)
    if name == "npo":
        return 2 * sigmoid(beta * ratio) * up
    margin = log_prob(z, positives) - log_prob(z0, positives) - ratio
    return -2 * sigmoid(-beta * margin) * ((positives - p) - up)


def slope_retain(name, z, z0, y):
    return sigmoid(z) - (y if name == "rt" else sigmoid(z0))


def in_numpy(name, problem, reference, retrained, *, rate, beta, steps, every):
    first, _, second = name.partition("_")
    forget, retain = problem.forget, problem.retain
    theta, points = reference.copy(), []
    for step in range(steps + 1):
        if step % every == 0:
            parts = (problem.forget_test, problem.retain_test)
            points.append([divergence(theta, retrained, x.features) for x in parts])
        slope = slope_forget(
            first,
            forget.features @ theta,
            forget.features @ reference,
            forget.labels,
            problem.positives,
            beta,
        )
        gradient = forget.features.T @ slope / len(slope)
        if second:
            z, z0 = retain.features @ theta, retain.features @ reference
            slope = slope_retain(second, z, z0, retain.labels)
            gradient += retain.features.T @ slope / len(slope)
        theta -= rate * gradient
    return np.array(points)


def learnt_in_numpy(features, labels, rate, steps):
    theta = np.zeros(features.shape[1])
    for _ in range(steps):
        theta -= rate * features.T @ (sigmoid(features @ theta) - labels) / len(labels)
    return theta


@pytest.fixture(scope="module")
def small():
    """Problems and weights of two seeds, and the first seed's problem in float64."""
    problems = study.drawn(SMALL)(jnp.array([1000, 2000]), 1.0)
    weights = study.learned(0.5, 40)(problems)
    return problems, weights, jax.tree.map(lambda x: np.asarray(x[0], np.float64), problems)


def test_learning_is_that_of_numpy(small):
    problems, weights, one = small
    both = [np.concatenate([a, b]) for a, b in zip(one.forget, one.retain, strict=True)]
    for ours, samples in ((weights.reference, both), (weights.retrained, one.retain)):
        assert ours.shape == (2, SMALL.features)
        np.testing.assert_allclose(ours[0], learnt_in_numpy(*samples, 0.5, 40), rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_that_of_numpy(small, name):
    problems, weights, one = small
    setting = {"rate": 0.2, "beta": 0.7}
    ours = study.unlearned(METHODS[name], 20, 5)(problems, weights, *setting.values())
    assert ours.shape == (2, 5, 2)
    before = [np.asarray(x[0], np.float64) for x in weights]
    theirs = in_numpy(name, one, *before, steps=20, every=5, **setting)
    np.testing.assert_allclose(ours[0], theirs, rtol=2e-4, atol=1e-6)
    assert np.abs(ours[0, -1] - ours[0, 0]).max() > 1e-2  # it went somewhere


def test_the_sweep_is_made_of_npo_and_ga(small):
    problems, weights, _ = small
    betas = jnp.array([1e-3, 0.7])
    ga, npo, apart = study.swept(20, 5)(problems, weights, 0.2, betas)
    for name, beta, found in (("ga", 1.0, ga), ("npo", 0.7, npo[:, 1])):
        alone = study.unlearned(METHODS[name], 20, 5)(problems, weights, 0.2, beta)
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)
    # Proposition 1: at a small beta NPO is GA.
    np.testing.assert_allclose(npo[:, 0], ga, rtol=1e-2, atol=1e-4)
    assert apart.shape == (2, 2) and np.all(apart[:, 0] < 0.1 * apart[:, 1])


@pytest.mark.slow
def test_what_is_drawn():
    """Moments of many samples; features of two seeds differ, and so do their labels."""
    sizes = study.Sizes(inputs=4, features=16, forget=4000, retain=4000, test=1)
    one, two = (study.draw(jax.random.key(seed), 0.0, sizes) for seed in (1, 2))
    assert not np.array_equal(one.forget.features, two.forget.features)
    # P(y = 1) is the mean of sigmoid(s + 1) for standard normal s, by quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    chance = (weights * sigmoid(nodes + 1)).sum() / weights.sum()
    np.testing.assert_allclose(one.forget.labels.mean(), chance, atol=0.03)
    np.testing.assert_allclose(one.retain.labels.mean(), 1 - chance, atol=0.03)
    np.testing.assert_allclose(one.positives.mean(), 0.5, atol=0.03)
    # The mean of ReLU(z) is s / sqrt(2 pi) for z of standard deviation s; over W, s**2 is 1.
    square = np.mean(np.square(one.forget.features), 0).mean()
    np.testing.assert_allclose(square, 0.5, atol=0.15)
    # A gap moves the inputs of both kinds, apart, and changes no label.
    apart = study.draw(jax.random.key(1), 1.0, sizes)
    np.testing.assert_array_equal(apart.forget.labels, one.forget.labels)
    assert not np.allclose(apart.forget.features, one.forget.features)


@pytest.mark.parametrize(
    ("name", "beta", "expected"),
    [
        # One unit sample, rate 0.1, in float64: distance after 10, 100, ... steps.
        ("ga", 1.0, [0.5595, 8.9654, 98.9652, 998.9652, 9998.9652]),
        ("npo", 1.0, [0.5210, 3.2361, 5.9271, 8.2855, 10.5956]),
        ("npo", 0.1, [0.5554, 7.4618, 29.4764, 53.4442, 76.6677]),
    ],
)
def test_the_divergence_of_one_logit(name, beta, expected):
    one = study.Samples(jnp.ones((1, 1, 1)), jnp.ones((1, 1), jnp.int32))
    gone = study.diverged(METHODS[name], 100_000, 10)(one, 0.1, beta)[0]
    np.testing.assert_allclose(gone[10 ** np.arange(5)], expected, rtol=2e-4)


def test_samples_that_diverge_are_unit_vectors_nearly_at_right_angles():
    found = study.nearly_orthogonal(jax.random.key(0), 10, 1000)
    products = np.asarray(found.features @ found.features.T)
    np.testing.assert_allclose(np.diag(products), 1.0, rtol=1e-5)
    assert np.abs(products - np.eye(10)).max() < 0.2
    assert 0 < found.labels.sum() < 10


# Claims.


def made(*, ga_retain=1.0, npo_rt_retain=0.02, nearest=0.001, idk=0.7, apart=(0.1, 0.5), growth=10):
    """Artefacts of three seeds, that differ a little, with paths of four points."""
    spread = 1 + 0.01 * np.arange(3)[:, None]

    def path(forget, retain):
        return {
            "forget": spread * np.geomspace(1.0, forget, 4)[None],
            "retain": spread * np.geomspace(0.02, retain, 4)[None],
        }

    paths = {name: path(nearest, ga_retain) for name in METHODS}
    paths["idk_rt"] = path(idk, 0.02)
    for name in ("npo", "npo_rt", "npo_kl"):
        paths[name] = path(nearest, npo_rt_retain)
    rows = {f"{name}/{part}": x for name, both in paths.items() for part, x in both.items()}
    betas = len(npo_synthetic.BETAS)
    along = np.ones((3, 4, 2))
    sweep = {
        "ga": along,
        "npo": np.repeat(along[:, None], betas, 1),
        "apart": spread * np.geomspace(*apart, betas)[None],
    }
    steps = npo_synthetic.DIVERGING_EVERY * np.arange(101)
    linear, logarithmic = spread * steps[None], spread * np.log(steps + 1)[None]
    first, second = (linear, logarithmic) if growth == 10 else (logarithmic, linear)
    gone = {"GA": first, "NPO, beta 0.1": second, "NPO, beta 1": second}
    return {
        "gap_1": Made(rows=rows),
        "gap_0": Made(rows=rows),
        "sweep": Made(rows=sweep),
        "divergence": Made(rows=gone),
    }


CONFIG = dataclasses.replace(SMOKE, seeds=3, steps=75, sweep_steps=75, diverging_steps=1000)


@pytest.mark.slow
def test_claims_that_hold(tmp_path):
    results = npo_synthetic.report(CONFIG, made(), tmp_path)
    assert verdicts(npo_synthetic, results) == ["holds"] * 9
    assert verdicts(npo_synthetic, results, "smoke") == ["not tested"] * 9
    assert all(path.exists() for path in results.plots.values())
    assert len(results.plots) == 8
    # Methods beside another implementation's: seeds in groups of five, here all three.
    row = next(x for t in results.tables if "beside" in t.title for x in t.rows)
    assert row["forget, elsewhere"] == 1.88 and row["forget, ours"] == pytest.approx(1.01)
    ends = results.values["ends"]
    assert ends[1]["idk_rt"][0] == pytest.approx([0.7, 0.02])
    # The best point of a path is not its end.
    effect = results.values["effects"]["frontier_1"][0]
    paths = made()["gap_1"].rows
    sums = {n: (paths[f"{n}/forget"] + paths[f"{n}/retain"])[0].min() for n in ("dpo", "npo_rt")}
    assert effect == pytest.approx(sums["dpo"] - sums["npo_rt"])


@pytest.mark.slow
def test_claims_that_fail(tmp_path):
    turned = made(
        ga_retain=0.02, npo_rt_retain=1.0, nearest=0.1, idk=0.001, apart=(0.5, 0.1), growth=1
    )
    results = npo_synthetic.report(CONFIG, turned, tmp_path)
    assert verdicts(npo_synthetic, results) == ["fails"] * 9


def test_claims_that_seeds_leave_open():
    names = ("nearest", "idk_nearest", "ga_retain", "ga_rt_retain", "frontier_1", "frontier_0")
    effects = {name: [-1.0, 1.0, 0.5] for name in (*names, "beta")}
    effects |= {"growth_ga": [8.0, 10.0, 12.0], "growth_npo": [0.8, 1.0, 1.2]}
    results = Results({"effects": effects})
    assert verdicts(npo_synthetic, results) == ["inconclusive"] * 9


def test_only_early_steps_count_as_near():
    steps = np.array([0, 1000, 1200, 1225])
    path = np.array([[[1.0, 0.0], [0.5, 0.0], [0.3, 0.0], [0.001, 0.0]]])
    measured = synthetic_report.Measured({1: {"ga": path}}, steps, {}, steps, path, {}, steps)
    np.testing.assert_allclose(synthetic_report._lowest(measured)["ga"], [0.3])


# From end to end.


def test_every_program_is_planned():
    config = dataclasses.replace(CONFIG, forget=5, retain=9, test=7, inputs=4, features=6)
    mesh = make_mesh(config.mesh)
    for stage in npo_synthetic.stages(config):
        plan = stage.build({}).plan(mesh)
        assert len(plan) == {"sweep": 3, "divergence": 4}.get(stage.name, 2 + len(METHODS))
        if stage.name == "sweep":
            for program in plan.values():
                program.jitted.lower(*program.arguments)


@pytest.mark.slow
def test_a_tiny_run_reads_every_field_of_the_config(tmp_path, monkeypatch):
    few = ("ga", "ga_rt", "idk_rt", "npo", "npo_rt")  # to save time: each is compiled
    for name in METHODS.keys() - set(few):
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setattr(synthetic_report, "SHOWN", few)
    elsewhere = {gap: {"start": (1.0, 1.0), "ga": (1.0, 1.0)} for gap in (1, 0)}
    monkeypatch.setattr(synthetic_report, "INDEPENDENT", elsewhere)
    config = dataclasses.replace(
        CONFIG, seeds=2, forget=5, retain=9, test=7, inputs=4, features=6, learning_steps=3
    )

    def go(config):
        with compiled_quickly():
            results = run.execute(npo_synthetic, NAME, "smoke", config, tmp_path / "run")
        assert [claim["verdict"] for claim in results["claims"]] == ["not tested"] * 9
        assert len(results["plots"]) == 8

    assert unread_fields(config, go) == []
