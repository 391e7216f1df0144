"""A linear model and batches for tests of steps and objectives: small enough to check by hand."""

import jax
import jax.numpy as jnp

from kd_jax.types import Logits, Model, ModelOutput, Objective, Output, weighted_sum

FEATURES, CLASSES = 3, 4


def linear_model() -> Model:
    def init(key):
        return {
            "kernel": 0.5 * jax.random.normal(key, (FEATURES, CLASSES)),
            "bias": jnp.zeros(CLASSES),
        }

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        x = inputs["inputs"] + add.get("inputs", 0.0)
        z = x @ params["kernel"] + params["bias"][None]
        return ModelOutput(Logits(z), {t: {"inputs": x, "logits": z}[t] for t in taps}, state)

    return Model(init, apply)


def batch_of(rows: int, seed: int = 0, uneven: bool = True) -> dict:
    """Inputs, targets and uneven weights, some of them 0."""
    keys = jax.random.split(jax.random.key(seed), 3)
    weights = jax.random.uniform(keys[2], (rows,)) if uneven else jnp.ones(rows)
    return {
        "inputs": jax.random.normal(keys[0], (rows, FEATURES)),
        "targets": jax.random.randint(keys[1], (rows,), 0, CLASSES),
        "weights": weights.at[0].set(0.0) if uneven else weights,
        "index": jnp.arange(rows, dtype=jnp.int32),
    }


def squared_error(model: Model, target: float = 1.0) -> Objective:
    """weights * mean over classes of (z - target)^2, a mean over examples."""

    def loss(params, carry, frozen, batch, ctx):
        z = model.apply(params["model"], batch).head.logits()
        error = jnp.mean((z - target) ** 2, -1)
        return Output(
            {"error": weighted_sum(error, batch["weights"])},
            {"size": weighted_sum(jnp.abs(z).mean(-1), batch["weights"])},
            {"error": error},
        )

    return Objective(lambda key, params, frozen, batch: ({}, {}), loss)


def assert_trees_close(a, b, rtol=1e-5, atol=1e-6):
    import numpy as np

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)
