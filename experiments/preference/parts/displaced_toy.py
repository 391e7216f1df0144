"""One hidden state, ten tokens: where DPO moves probability when two tokens' rows are alike."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.preference import margin
from kd_jax.losses.preference.pairs import Pairs

COSINES = (-0.9, 0.0, 0.5, 0.9, 0.99)
TOKENS, WIDTH, STEPS, RATE, BETA = 10, 8, 60, 1.0, 0.1


def measured(seeds: int) -> dict[str, Any]:
    """{measure: [cosine, seed]}: chosen's change of log p, and whether a third token gains most.

    Rows of the unembedding are normal; the rejected token's is turned until its cosine with the
    chosen's is the one asked for, at its own length. Only the hidden state is trained.
    """
    keys = jax.random.split(jax.random.key(0), seeds)
    change, third = jax.vmap(lambda c: jax.vmap(lambda key: _one(key, c))(keys))(jnp.array(COSINES))
    return {"toy_change": np.asarray(change), "toy_third": np.asarray(third, np.float32)}


@jax.jit
def _one(key: jax.Array, cosine: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, second = jax.random.split(key)
    rows = jax.random.normal(first, (TOKENS, WIDTH))
    unit = rows[0] / jnp.linalg.norm(rows[0])
    apart = rows[1] - (rows[1] @ unit) * unit
    apart /= jnp.linalg.norm(apart)
    turned = cosine * unit + jnp.sqrt(1 - cosine**2) * apart
    rows = rows.at[1].set(turned * jnp.linalg.norm(rows[1]))
    start = jax.random.normal(second, (WIDTH,)) / jnp.sqrt(WIDTH)
    before = jax.nn.log_softmax(rows @ start)

    def loss(hidden: jax.Array) -> jax.Array:
        after = jax.nn.log_softmax(rows @ hidden)
        return margin.dpo(Pairs(after[:1], after[1:2], before[:1], before[1:2]), beta=BETA)[0]

    step = functools.partial(_descend, jax.grad(loss))
    after = jax.nn.log_softmax(rows @ jax.lax.fori_loop(0, STEPS, step, start))
    gains = jnp.exp(after) - jnp.exp(before)
    return after[0] - before[0], jnp.argmax(gains) > 1


def _descend(gradient: Any, i: jax.Array, hidden: jax.Array) -> jax.Array:
    return hidden - RATE * gradient(hidden)
