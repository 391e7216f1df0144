"""Half hard, half soft labels over a large vocabulary: streamed against [B, T, V] written out.

Memory is the compiler's figure for this platform, of programs that are not run; bfloat16, width
2048. Time is of width 256 in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import Row, microseconds
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.divergences import jensen_shannon
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.types import Factored, weighted_sum

# (B, T, V)
SIZES = ((8, 1024, 32_000), (8, 4096, 32_000), (8, 1024, 128_256), (8, 4096, 151_936),
         (8, 1024, 262_144))  # fmt: skip
TIMED = ((2, 1024, 32_000), (4, 1024, 32_000), (2, 1024, 128_256))


def row(logits, others, targets, fixed) -> jax.Array:
    soft = jensen_shannon(logits, others[0], beta=0.5)
    return 0.5 * soft - 0.5 * label_log_probs(logits, targets)


def streamed(student, unembedding, teacher, frozen, targets, weights) -> jax.Array:
    heads = Factored(student, unembedding), Factored(teacher, frozen)
    return weighted_sum_over_vocabulary(row, heads[0], weights, targets, others=heads[1:]).value


def dense(student, unembedding, teacher, frozen, targets, weights) -> jax.Array:
    z, t = Factored(student, unembedding).logits(), Factored(teacher, frozen).logits()
    return weighted_sum(row(z, (t,), targets, ()), weights).value


def shapes(batch: int, length: int, vocabulary: int, width: int, dtype: Any) -> list[Any]:
    of = jax.ShapeDtypeStruct
    hidden, head = of((batch, length, width), dtype), of((vocabulary, width), dtype)
    rows = of((batch, length), jnp.int32), of((batch, length), jnp.float32)
    return [hidden, head, hidden, head, *rows]


@functools.cache
def _compiled(form: Any, size: tuple[int, int, int], width: int, dtype: Any) -> Any:
    f = jax.value_and_grad(form, (0, 1))
    return jax.jit(f).lower(*shapes(*size, width, dtype)).compile()


def temporaries(form: Any, size: tuple[int, int, int], width: int = 2048) -> float:
    """MiB besides arguments and results."""
    return _compiled(form, size, width, jnp.bfloat16).memory_analysis().temp_size_in_bytes / 2**20


def arguments(size: tuple[int, int, int], width: int) -> list[jax.Array]:
    batch, length, vocabulary = size
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = [jax.random.normal(key, (batch, length, width)) for key in keys[:2]]
    heads = [jax.random.normal(key, (vocabulary, width)) / width**0.5 for key in keys[2:4]]
    targets = jax.random.randint(keys[4], (batch, length), 0, vocabulary)
    return [hidden[0], heads[0], hidden[1], heads[1], targets, jnp.ones((batch, length))]


def _finished(run: Any, given: list[jax.Array]) -> None:
    jax.block_until_ready(run(*given))


def rows() -> list[Row]:
    found = []
    for size in SIZES:
        ours, reference = (temporaries(form, size) for form in (streamed, dense))
        tokens, vocabulary = size[0] * size[1], size[2]
        name = f"vocabulary: temporaries, {tokens} tokens, V = {vocabulary}"
        found.append(Row(name, ours, reference, "MiB"))
    for size in TIMED:
        given = arguments(size, 256)
        programs = [_compiled(form, size, 256, jnp.float32) for form in (streamed, dense)]
        (value, gradients), (expected, wanted) = (run(*given) for run in programs)
        for x, y in zip([value, *gradients], [expected, *wanted], strict=True):
            if not jnp.allclose(x, y, rtol=1e-3, atol=1e-5):
                raise RuntimeError("the streamed and the dense form differ")
        del gradients, wanted
        ours, reference = (functools.partial(_finished, run, given) for run in programs)
        times = microseconds(ours, reference, calls=1, rounds=3)
        name = f"vocabulary: time, {size[0] * size[1]} tokens, V = {size[2]}"
        found.append(Row(name, times[0] / 1e3, times[1] / 1e3, "ms"))
    return found
