"""Next-token log-probabilities with their gradients: streamed against [B, T, V] written out."""

import jax
import jax.numpy as jnp

from benchmarks import Row, microseconds
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.types import Factored

B, T, D, V = 2, 1024, 256, 16384


def rows() -> list[Row]:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (B, T, D))
    unembedding = jax.random.normal(keys[1], (V, D)) / D**0.5
    targets = jax.random.randint(keys[2], (B, T), 0, V)

    def streamed(hidden, unembedding):
        return token_log_probs(Factored(hidden, unembedding), targets).sum()

    def dense(hidden, unembedding):
        return label_log_probs(Factored(hidden, unembedding).logits(), targets).sum()

    programs = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1))).lower(hidden, unembedding).compile()
        for f in (streamed, dense)
    ]
    (value, gradients), (expected, wanted) = (run(hidden, unembedding) for run in programs)
    for x, y in zip([value, *gradients], [expected, *wanted], strict=True):
        if not jnp.allclose(x, y, rtol=1e-4, atol=1e-5):
            raise RuntimeError("streamed and dense log-probabilities differ")

    def timed(run):
        return lambda: jax.block_until_ready(run(hidden, unembedding))

    ours, reference = map(timed, programs)
    times = microseconds(ours, reference, calls=1, rounds=3)
    found = [Row(f"streaming: time, V = {V}", times[0] / 1e3, times[1] / 1e3, "ms")]
    stats = [run.memory_analysis() for run in programs]
    sizes = [s.temp_size_in_bytes / 2**20 for s in stats if s is not None]
    if len(sizes) == 2:  # not every backend tells
        found.append(Row(f"streaming: temporaries, V = {V}", sizes[0], sizes[1], "MiB"))
    return found
