"""Searched recipes and paths: the wrapped model, what is searched, claims, a tiny run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, compiled_quickly, outline, refusal, verdicts

from experiments.merging import evolve_digits
from experiments.merging.common.specialists import split
from experiments.merging.common.tasks import Examples
from experiments.merging.parts import searches
from kd_jax.launch import run
from kd_jax.models import residual_mlp

SMOKE = evolve_digits.PRESETS["smoke"]
LAPTOP = evolve_digits.PRESETS["laptop"]


def test_stages():
    found = outline(evolve_digits, SMOKE)
    assert found["searched_1"] == ("pretrained_1", "turned_1", "mirrored_1")
    assert len(outline(evolve_digits, LAPTOP)) == LAPTOP.seeds * (2 + LAPTOP.tasks)
    models = {name for name in found if not name.startswith("searched")}
    deeper = dataclasses.replace(SMOKE, depth=3)
    assert changed(evolve_digits, SMOKE, deeper) == set(found)
    longer = dataclasses.replace(SMOKE, generations=5)
    assert changed(evolve_digits, SMOKE, longer) == set(found) - models


@pytest.mark.parametrize(
    ("flag", "value"),
    [("width", "0"), ("hidden", "0"), ("fitness", "0"), ("rounds", "0"), ("tasks", "1")],
)
def test_bad_values_are_refused_by_name(flag, value):
    said = refusal(evolve_digits, "smoke", f"--{flag}", *value.split())
    assert said.startswith(f"{flag}: got ")


BENCH = searches.benchmark(6, 5, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)


def drawn(seed):
    params = BENCH.model.init(jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.1 * jnp.sin(seed + jnp.arange(x.size)).reshape(x.shape),
                        params)  # fmt: skip


def test_the_model_is_the_residual_perceptron():
    sizes = residual_mlp.ResidualMLPConfig(inputs=64, width=6, depth=4, hidden=5, classes=10)
    plain = residual_mlp.residual_mlp(sizes)
    key = jax.random.key(3)
    logits = [m.apply(m.init(key), {"inputs": IMAGES}).head.z for m in (BENCH.model, plain)]
    np.testing.assert_allclose(*logits, rtol=1e-5)


@pytest.mark.slow
def test_a_path_of_one_model_is_that_model():
    """And so is the start of the search: the first of the two models."""
    one, two = (split(BENCH, drawn(seed)) for seed in (0, 1))
    answers = BENCH.model.apply({**one[0], "ends": one[1]}, {"inputs": IMAGES}).head.z.argmax(-1)
    sets = Examples(jnp.asarray(IMAGES)[None], answers[None])
    right = searches._through(2)
    blocks = searches.stacked([one[0], two[0]])
    x = jnp.zeros(2 * 8 + 64).at[:4].set(1.0)
    assert right(x, blocks, one[1], sets).all()
    other = jnp.zeros(2 * 8 + 64).at[4:8].set(1.0)
    own = BENCH.model.apply({**two[0], "ends": one[1]}, {"inputs": IMAGES}).head.z.argmax(-1)
    np.testing.assert_array_equal(right(other, blocks, one[1], sets)[0], own == answers)
    assert not (own == answers).all()


@pytest.mark.slow
def test_recipes_in_the_unit_box():
    base, *thetas = (split(BENCH, drawn(seed))[0] for seed in (0, 1, 2))
    key = jax.random.key(0)
    # Density 1 everywhere; the first model in the lower half, the second in the upper.
    x = jnp.array([1, 1, 1, 1, 1, 0, 0, 1], jnp.float32)
    found = searches._recipe(BENCH, 4, x, base, thetas, key)
    for i in range(4):
        theirs = thetas[0 if i < 2 else 1][f"block_{i}"]
        for a, b in zip(*map(jax.tree.leaves, (found[f"block_{i}"], theirs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    nothing = searches._recipe(BENCH, 4, jnp.zeros(8), base, thetas, key)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(nothing))
    leaves = len(jax.tree.leaves(base))
    same = searches._coefficients(BENCH, 4, jnp.full(2 * leaves, 0.6), base, thetas, key)
    scaled = searches._scale(BENCH, 4, jnp.array([0.6 / searches.LARGEST]), base, thetas, key)
    for a, b in zip(*map(jax.tree.leaves, (same, scaled)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def made(better):
    """Every arm 80 per cent, but those named."""
    values = {}
    for count in (2, 3, 4):
        values |= {f"{arm}/{count}/fitness": 85.0 for arm in evolve_digits.ARMS}
        values |= {f"{arm}/{count}/test": 80.0 for arm in (*evolve_digits.ARMS, "best specialist")}
    for arm in evolve_digits.PATHS:
        values |= {f"{arm}/{m}": 80.0 for m in ("fitness", "test")}
        values |= {f"{arm}/layers": 8.0, f"{arm}/second model": 4.0}
    rows = {f"{arm}/best": np.linspace(60, 85, 20) for arm in evolve_digits.SEARCHES}
    return {
        f"searched_{seed}": Made(
            values={k: v + better.get(k, 0.0) + 0.01 * seed for k, v in values.items()}, rows=rows
        )
        for seed in LAPTOP.repetitions
    }


def test_claims_on_searches_made_by_hand(tmp_path):
    good = {
        "CMA-ES/4/fitness": 5, "CMA-ES/4/test": 5, "CMA-ES by leaf/4/test": 3, "path/test": 2,
        "merge, then path/test": 1,
    }  # fmt: skip
    results = evolve_digits.report(LAPTOP, made(good), tmp_path)
    assert verdicts(evolve_digits, results) == ["holds"] * 6
    assert all(path.exists() for path in results.plots.values())
    bad = {name: -value for name, value in good.items()}
    results = evolve_digits.report(LAPTOP, made(bad), tmp_path)
    assert verdicts(evolve_digits, results) == ["fails"] * 6


@pytest.mark.slow
def test_a_run_of_two_steps_reads_every_field_of_the_config(tmp_path):
    config = dataclasses.replace(
        SMOKE, width=4, hidden=4, depth=2, steps=2, generations=2, population=4, flow_generations=2,
        flow_population=4, fitness=5, rounds=1, pretraining_images=40,
    )  # fmt: skip

    def go(config):
        with compiled_quickly():
            results = run.execute(
                evolve_digits, evolve_digits.__name__, "smoke", config, tmp_path / "run"
            )
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(config, go) == []
