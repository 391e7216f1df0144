"""Responses that a model samples while another is trained on them, as the `prepare` of a training.

    prepare(state, frozen, batch) -> batch

keeps the prompts of a text batch and replaces what follows them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models import sampler
from kd_jax.models.config import DecoderConfig
from kd_jax.types import Batch, Frozen, Policy, TrainState

_PURPOSE = 2**32 - 1  # no step has this number, so the step's own keys are others


def sampled(
    config: DecoderConfig,
    batch: Batch,
    params: Any,
    key: jax.Array,
    *,
    prompt: int,
    temperature: float,
) -> Batch:
    """The text batch with all but the first `prompt` tokens of every row drawn from a decoder.

    batch: "inputs", "targets" [B, T]; all else, weights included, stays as it is. The T + 1 -
    prompt new tokens are drawn at `temperature`; a row's draws depend on the key and its place.
    """
    rows, length = batch["inputs"].shape
    if not 1 <= prompt <= length:
        raise ValueError(f"prompt: got {prompt}, takes 1 to the {length} tokens of a row")
    given = batch["inputs"][:, :prompt]
    drawn, _ = sampler.generate(
        config,
        params,
        given,
        jnp.full(rows, prompt, jnp.int32),
        key,
        max_new=length + 1 - prompt,
        temperature=temperature,
    )
    tokens = jnp.concatenate([given, drawn], axis=1)
    return {**batch, "inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def fresh(config: DecoderConfig, policy: Policy, *, prompt: int):
    """The prepare whose responses are samples, at temperature 1, of the model that
    policy(params, frozen) has the weights of: the student itself, or its teacher."""

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _PURPOSE), state.step)
        weights = policy(state.params, frozen)
        return sampled(config, batch, weights, key, prompt=prompt, temperature=1.0)

    return prepare
