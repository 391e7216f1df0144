"""RPO in bandits: the bandit against its definition, DPO and RPO in NumPy, claims, a tiny run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, compiled_quickly, outline, refusal, verdicts

from experiments.preference import rpo_stability
from experiments.preference.parts import rpo_bandit
from kd_jax.launch import run
from kd_jax.launch.mesh import make_mesh

SMOKE, LAPTOP = rpo_stability.PRESETS["smoke"], rpo_stability.PRESETS["laptop"]
NAME = rpo_stability.__name__
SIZES = rpo_bandit.Sizes(actions=9, covered=3, features=2, pairs=7)


@pytest.mark.slow
@pytest.mark.parametrize("linear", [True, False])
def test_the_bandit(linear):
    bandit = rpo_bandit.draw(jax.random.key(1), linear, SIZES)
    np.testing.assert_allclose([bandit.reward.mean(), bandit.reward.std()], [0, 1], atol=1e-5)
    # The three in the middle of nine, and pairs of two of them.
    ranks = np.argsort(np.argsort(bandit.reward))
    assert set(np.flatnonzero(bandit.covered)) == set(np.flatnonzero((ranks >= 3) & (ranks < 6)))
    for side in (bandit.chosen, bandit.rejected):
        assert bandit.covered[side].all()
    assert (bandit.chosen != bandit.rejected).all()
    x = np.column_stack([np.asarray(bandit.features, np.float64), np.ones(9)])
    residue = np.linalg.lstsq(x, np.asarray(bandit.reward, np.float64), rcond=None)[1]
    assert (residue < 1e-8) == linear


def test_the_better_wins_as_often_as_bradley_and_terry_say():
    bandit = rpo_bandit.draw(jax.random.key(0), True, SIZES._replace(pairs=4000))
    gap = bandit.reward[bandit.chosen] - bandit.reward[bandit.rejected]
    np.testing.assert_allclose((gap > 0).mean(), jax.nn.sigmoid(jnp.abs(gap)).mean(), atol=0.03)


@pytest.mark.slow
def test_training_is_that_of_numpy():
    """Adam on -log sigmoid(beta u) - eta beta log p(chosen), gradients by hand."""
    beta, rate, etas = 0.5, 0.1, (0.0, 0.4)
    program = rpo_bandit.trained(SIZES, True, beta, rate, points=2, every=2)
    found = program(jnp.array([5]), jnp.array(etas))
    bandit = rpo_bandit.draw(jax.random.key(5), True, SIZES)
    x, reward = (np.asarray(a, np.float64) for a in (bandit.features, bandit.reward))
    won, lost = x[bandit.chosen], x[bandit.rejected]
    for i, eta in enumerate(etas):
        theta, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
        for step in range(5):
            p = np.exp(x @ theta) / np.exp(x @ theta).sum()
            if step % 2 == 0:
                at = step // 2
                log_p = np.log(p)[np.asarray(bandit.chosen)].mean()
                uncovered = p[~np.asarray(bandit.covered)].sum()
                for name, value in zip(
                    ("reward", "chosen", "uncovered"), (p @ reward, log_p, uncovered), strict=True
                ):
                    np.testing.assert_allclose(
                        getattr(found, name)[i, 0, at], value, rtol=1e-4, atol=1e-5
                    )
            slope = 1 / (1 + np.exp(beta * (won - lost) @ theta))
            gradient = -beta * (slope[:, None] * (won - lost)).mean(0)
            gradient -= eta * beta * (won.mean(0) - p @ x)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            unbiased = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            theta = theta - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)


@pytest.mark.slow
def test_stages_and_what_they_depend_on():
    assert outline(rpo_stability, LAPTOP) == {"informative": (), "uninformative": ()}
    other = dataclasses.replace(SMOKE, beta=0.2)
    assert changed(rpo_stability, SMOKE, other) == {"informative", "uninformative"}
    for stage in rpo_stability.stages(SMOKE):
        (program,) = stage.build({}).plan(make_mesh(SMOKE.mesh)).values()
        program.jitted.lower(*program.arguments)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--covered", "21", "covered: got 21, takes numbers from 2 to actions, 20"),
        ("--seeds", "1", "seeds: got 1, takes at least 2"),
        ("--steps", "30", "steps: got 30, takes a multiple of every, 50"),
        ("--beta", "0", "beta: got 0"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value, said):
    assert said in refusal(rpo_stability, "smoke", flag, value)


def made(*, dpo, rpo, dpo_elsewhere, rpo_elsewhere):
    """Worlds of three bandits. Arguments: ends of (reward, its best, log p(chosen), uncovered)."""

    def world(first, second):
        spread = 1 + 0.01 * np.arange(3)[:, None]

        def paths(start, *places):
            ends = [[start, *(end[place] for place in places)] for end in (first, second, second)]
            return np.stack([spread * np.array(path) for path in ends])

        return Made(
            rows={
                "reward": paths(0.0, 1, 0),
                "chosen": paths(-3.0, 2, 2),
                "uncovered": paths(0.7, 3, 3),
            }
        )

    return {"informative": world(dpo, rpo), "uninformative": world(dpo_elsewhere, rpo_elsewhere)}


CONFIG = dataclasses.replace(SMOKE, steps=100)
CALM, WILD = (0.2, 0.21, -3.1, 0.5), (0.9, 1.4, -50.0, 0.9)


def test_claims_that_hold(tmp_path):
    worlds = made(dpo=WILD, rpo=CALM, dpo_elsewhere=(-0.5, 0.5, -30.0, 0.9), rpo_elsewhere=CALM)
    results = rpo_stability.report(CONFIG, worlds, tmp_path)
    assert verdicts(rpo_stability, results) == ["holds"] * 6
    assert verdicts(rpo_stability, results, "smoke") == ["not tested"] * 6
    assert all(path.exists() for path in results.plots.values()) and len(results.plots) == 4
    row = results.tables[0].rows[0]
    assert row["true reward"].estimate == pytest.approx(0.909)
    assert row["worse than the reference"].estimate == 0


def test_claims_that_fail(tmp_path):
    worlds = made(dpo=CALM, rpo=WILD, dpo_elsewhere=WILD, rpo_elsewhere=CALM)
    results = rpo_stability.report(CONFIG, worlds, tmp_path)
    assert verdicts(rpo_stability, results) == ["fails"] * 6


@pytest.mark.slow
def test_a_tiny_run_reads_every_field_of_the_config(tmp_path):
    def go(config):
        with compiled_quickly():
            results = run.execute(rpo_stability, NAME, "smoke", config, tmp_path / "run")
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(SMOKE, go) == []
