"""Optimisers: decay by path, clipping, float32 masters, schedules at their corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import optim

PARAMS = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def step(tx, params, grads):
    updates, _ = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd, optim.adafactor, optim.muon])
def test_decay_is_scaled_by_the_rate_and_reaches_kernels_and_not_biases(make):
    new = step(make(optax.constant_schedule(0.1), weight_decay=0.5), PARAMS, ZEROS)
    np.testing.assert_allclose(new["kernel"], 1.0 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], PARAMS["bias"])


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd, optim.adafactor, optim.muon])
def test_every_optimiser_descends(make):
    tx = make(0.05, clip=1.0)
    params, loss = PARAMS, lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))
    state = tx.init(params)
    first = loss(params)

    @jax.jit
    def move(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(30):
        params, state = move(params, state)
    assert float(loss(params)) < 0.7 * float(first)


def test_clip_bounds_the_norm_of_the_whole_gradient():
    grads = {"kernel": 3 * jnp.ones((4, 4)), "bias": jnp.zeros(4)}
    moved = step(optim.sgd(0.5, clip=2.0), PARAMS, grads)
    size = optax.tree.norm(jax.tree.map(jnp.subtract, PARAMS, moved))
    np.testing.assert_allclose(size, 0.5 * 2.0, rtol=1e-6)  # of the gradient, not of the update
    with pytest.raises(ValueError, match="clip: got 0"):
        optim.sgd(1.0, clip=0)


@pytest.mark.parametrize(
    "make",
    [optim.adamw, functools.partial(optim.sgd, momentum=0.9), optim.adafactor, optim.muon],
)
def test_moments_of_bfloat16_parameters_are_float32(make):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    tx = make(0.1, weight_decay=0.1, clip=1.0)
    updates, state = tx.update(params, tx.init(params), params)
    kinds = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert kinds == {jnp.dtype(jnp.float32)}
    new = optax.apply_updates(params, updates)
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}


def test_momentum_plain_and_nesterov():
    """Two steps on the gradient 1: moments 1 and 1.5; Nesterov's looks half a moment ahead."""
    grads = jax.tree.map(jnp.ones_like, PARAMS)

    def moved(nesterov):
        tx = optim.sgd(1.0, momentum=0.5, nesterov=nesterov)
        first, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        second, _ = tx.update(grads, state, PARAMS)
        return [-float(u["bias"][0]) for u in (first, second)]

    np.testing.assert_allclose(moved(False), [1.0, 1.5])
    np.testing.assert_allclose(moved(True), [1.5, 1.75])


def test_muon_orthogonalises_the_matrices_of_the_last_two_axes():
    """Updates grow with sqrt(out / in) where a kernel [.., in, out] has more outputs."""
    wide = jax.random.normal(jax.random.key(0), (2, 3, 12))
    tall = jnp.swapaxes(wide, 1, 2)

    def update(kernel):
        tx = optim.muon(1.0)
        return tx.update({"kernel": kernel}, tx.init({"kernel": kernel}), {"kernel": kernel})[0]

    of_wide, of_tall = update(wide)["kernel"], update(tall)["kernel"]
    np.testing.assert_allclose(of_wide, 2 * jnp.swapaxes(of_tall, 1, 2), rtol=1e-3, atol=1e-4)
    for layer in range(2):
        alone = update(wide[layer])["kernel"]
        np.testing.assert_allclose(of_wide[layer], alone, rtol=1e-3, atol=1e-4)
        singular = np.linalg.svd(np.asarray(alone), compute_uv=False) / 2
        assert np.all((singular > 0.6) & (singular < 1.3))


def test_float32_masters_keep_what_bfloat16_loses():
    """1 - 100 * 0.001 in bfloat16 steps of 1/128: without masters nothing moves at all."""
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    grads = {"w": jnp.full(3, 0.001, jnp.bfloat16)}

    def run(tx):
        p, state = params, tx.init(params)
        for _ in range(100):
            updates, state = tx.update(grads, state, p)
            p = optax.apply_updates(p, updates)
        return p["w"]

    exact = 1 - 100 * float(jnp.bfloat16(0.001))
    got = run(optim.float32_masters(optim.sgd(1.0)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.full(3, exact, jnp.bfloat16))
    np.testing.assert_array_equal(run(optim.sgd(1.0)), params["w"])


def test_float32_masters_of_an_optimiser_that_rounds():
    """optax's own works in the gradient's dtype: it is given float32 ones."""
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = optim.float32_masters(optax.sgd(0.3))
    updates, state = tx.update({"w": jnp.full(3, 0.1, jnp.bfloat16)}, tx.init(params), params)
    expected = 1 - np.float32(0.3) * np.float32(jnp.bfloat16(0.1))
    np.testing.assert_allclose(state.masters["w"], expected, rtol=1e-7)
    np.testing.assert_allclose(1 + updates["w"], expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        (
            optim.warmup_cosine(2.0, warmup=4, steps=12, final=0.5),
            {0: 0, 2: 1, 4: 2, 8: 1.25, 12: 0.5},
        ),
        (optim.linear(2.0, warmup=4, steps=12), {0: 0, 4: 2, 8: 1, 12: 0}),
        (optim.wsd(2.0, warmup=2, decay=4, steps=12), {0: 0, 2: 2, 8: 2, 10: 1, 12: 0}),
        (optim.linear(2.0, warmup=0, steps=4), {0: 2, 4: 0}),
    ],
)
def test_schedules_at_their_corners(schedule, corners):
    for at, value in corners.items():
        np.testing.assert_allclose(schedule(at), value, atol=1e-6)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup: got 12, takes 0 to fewer than steps=12"):
        optim.linear(1.0, warmup=12, steps=12)
    with pytest.raises(ValueError, match="decay: got 7, takes 0 to steps - warmup = 6"):
        optim.wsd(1.0, warmup=6, decay=7, steps=12)
