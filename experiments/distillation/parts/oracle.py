"""A process over a few symbols whose distribution is a table: what a teacher learns and may miss.

A row begins with PROMPT symbols, drawn evenly. Symbol t after them is drawn from
table[s_0, s_1, s_{t-2}, s_{t-1}]: what comes depends on the two symbols before it and, to the end
of the row, on the first two of the prompt. So the log-probability of any row, and the KL divergence
of any model from the process at any position, are exact.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.streaming import token_forward_kl
from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Context, Logits, Model, ModelOutput, Objective, Output, Policy, stateless

PROMPT = 3


@functools.cache
def table(symbols: int, sharpness: float, seed: int) -> np.ndarray:
    """log p(next | s_0, s_1, s_{t-2}, s_{t-1}), f32 [A, A, A, A, A].

    The logits are sharpness times the sum of three normal tables, of pairs: of the two symbols
    before, of s_0 with the last of them and of s_1 with the other. A model that finds the pairs
    knows rows of prompts that it has not seen.
    """
    rng = np.random.default_rng(seed)
    last_two, first_last, second_other = rng.normal(size=(3, symbols, symbols, symbols))
    logits = sharpness * (
        last_two[None, None] + first_last[:, None, None, :, :] + second_other[None, :, :, None, :]
    )
    return np.asarray(logits - np.logaddexp.reduce(logits, -1, keepdims=True), np.float32)


def prompts(symbols: int, count: int, seed: int) -> np.ndarray:
    """int32 [count, PROMPT], no two the same."""
    if count > symbols**PROMPT:
        raise ValueError(f"prompts: got {count}, {symbols} symbols make {symbols**PROMPT}")
    chosen = np.random.default_rng(seed).permutation(symbols**PROMPT)[:count]
    return np.stack(np.unravel_index(chosen, (symbols,) * PROMPT), -1).astype(np.int32)


def responses(
    log_probs: np.ndarray, prompts: np.ndarray, length: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Rows of the process: int32 [N, length], the prompts first."""
    rng = np.random.default_rng(seed)
    ends = np.exp(log_probs.astype(np.float64)).cumsum(-1)
    found = [*prompts.T]
    while len(found) < length:
        row = ends[found[0], found[1], found[-2], found[-1]]
        drawn = rng.random((len(row), 1)) * row[:, -1:]
        found.append((drawn > row[:, :-1]).sum(-1))
    return np.stack(found, -1).astype(np.int32)


def model() -> Model:
    """The process as a model; its params are the table. What it says of the prompt is no matter."""

    def apply(params: Any, inputs: Any, **_: Any) -> ModelOutput:
        tokens = inputs["inputs"]
        before = jnp.roll(tokens, 1, axis=1)
        first, second = tokens[:, :1], tokens[:, 1:2]
        return ModelOutput(Logits(params[first, second, before, tokens]))

    def init(key: jax.Array) -> Any:
        raise NotImplementedError("a process is not trained: its table is given")

    return Model(init, apply)


def sequence_kl(student: Model, other: Model, *, policy: Policy = own_weights) -> Objective:
    """Row "kl" f32[B]: the sum over weighed tokens of KL(other || student), in nats.

    other's weights are frozen["other"]. Its mean over rows that were sampled from `other` is an
    unbiased estimate of the KL divergence between the two distributions of responses.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        ours = student.apply(policy(params, frozen), batch)
        theirs = other.apply(frozen["other"], batch)
        kl = token_forward_kl(ours.head, theirs.head)
        return Output({}, {}, {"kl": jnp.where(batch["weights"] > 0, kl, 0.0).sum(-1)})

    return stateless(loss)
