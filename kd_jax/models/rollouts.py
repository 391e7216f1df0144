"""A batch of text whose answers a decoder writes: the data of on-policy training."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from kd_jax.models import sampler
from kd_jax.models.config import DecoderConfig
from kd_jax.types import Batch, PyTree

_WRITTEN = ("inputs", "targets", "weights")


def continued(
    config: DecoderConfig,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    *,
    max_new: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[int] = (),
) -> Batch:
    """The batch with every answer written anew by the model, without gradient.

    batch: text, "inputs", "targets" and "weights" [B, T]: one prompt, then its answer, in a row;
        the answer begins with the target of the first token of weight above 0. A row without
        weights stays without.
    params: plain weights in the layout of config (with LoRA: `lora.attach`).

    A row goes on until it draws a token in stop (which is kept), has max_new new tokens, or is
    full; new tokens have weight 1, and behind them are zeros. Everything else in the batch stays,
    so what depends on the old answer (its log-probabilities) must not be in it. The draws of a row
    depend on key and its place in the batch. To be jitted, as `Training.prepare` is; it costs a
    prefill of T and max_new steps. Sampling as in `sampler.generate`.

    ValueError for packed rows, which have several prompts.
    """
    packed = [name for name in ("segments", "positions") if name in batch]
    if packed:
        raise ValueError(f"batch: got {', '.join(packed)}, takes rows of one prompt, not packed")
    inputs, targets, weights = (batch[name] for name in _WRITTEN)
    tokens = jnp.concatenate([inputs, targets[:, -1:]], 1)  # [B, T + 1]
    answered = (weights > 0).any(1, keepdims=True)
    given = jnp.argmax(weights > 0, axis=1).astype(jnp.int32) + 1  # tokens of the prompt
    place = jnp.arange(tokens.shape[1])[None, :]
    prompts = jnp.where(place < given[:, None], tokens, 0)
    new, counts = sampler.generate(
        config,
        jax.lax.stop_gradient(params),
        prompts[:, :-1],
        given,
        key,
        max_new=max_new,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
    )
    number = place - given[:, None]  # of the new token at each place
    written = (number >= 0) & (number < counts[:, None])
    drawn = jnp.take_along_axis(new, jnp.clip(number, 0, max_new - 1), axis=1)
    tokens = jnp.where(written, drawn, prompts)
    return {
        **batch,
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (written[:, 1:] & answered).astype(weights.dtype),
    }
