"""Decoding with a cache of keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.models.attention import attention
from kd_jax.models.config import DecoderConfig
from kd_jax.models.decoder import (
    default_positions,
    embed,
    head,
    over_layers,
    rotary_tables,
    run_block,
)
from kd_jax.models.parts import fetched, rms_norm
from kd_jax.types import PyTree


class Cache(NamedTuple):
    """Keys (rotated) and values of every layer: slot s of a row holds its token at position s."""

    k: jax.Array  # [L, B, S, G, K]
    v: jax.Array  # [L, B, S, G, K]


def prefill(
    config: DecoderConfig,
    params: PyTree,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    *,
    slots: int,
) -> tuple[Float[Array, "B V"], Cache]:
    """(f32 logits after each row's last token, a cache with `slots` places a row).

    prompts are padded on the right; lengths are at least 1. The padding's keys stay in slots from
    `length` on, which no query sees before `step` has written over them.
    """
    if slots < prompts.shape[1]:
        raise ValueError(f"slots: got {slots}, takes at least the prompts' {prompts.shape[1]}")
    table = rotary_tables(config, default_positions(prompts))

    def body(stream, i, layer):
        def attend(q, k, v):
            return attention(q, k, v, window=config.window), (k, v)

        return run_block(config, layer, stream, table, attend)[:2]

    stream, (k, v) = over_layers(config, params["layers"], body, embed(config, params, prompts))
    empty = [(0, 0), (0, 0), (0, slots - prompts.shape[1]), (0, 0), (0, 0)]
    last = jnp.take_along_axis(stream, (lengths - 1)[:, None, None], axis=1)
    return _logits(config, params, last), Cache(jnp.pad(k, empty), jnp.pad(v, empty))


def step(
    config: DecoderConfig,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
) -> tuple[Float[Array, "B V"], Cache]:
    """(f32 logits after one more token in each row, the cache with it).

    positions: the number of tokens already in each row; the token is written to that slot.
    """
    table = rotary_tables(config, positions[:, None])
    rows = jnp.arange(tokens.shape[0])

    def body(carry, i, layer):
        stream, cache = carry

        def attend(q, k, v):
            new = Cache(
                cache.k.at[i, rows, positions].set(k[:, 0]),
                cache.v.at[i, rows, positions].set(v[:, 0]),
            )
            out = attention(
                q, new.k[i], new.v[i], window=config.window, q_positions=positions[:, None]
            )
            return out, new

        return run_block(config, layer, stream, table, attend)[:2], ()

    start = (embed(config, params, tokens[:, None]), cache)
    (stream, cache), _ = over_layers(config, params["layers"], body, start)
    return _logits(config, params, stream), cache


def _logits(config: DecoderConfig, params: PyTree, stream: jax.Array) -> jax.Array:
    final = rms_norm(stream, fetched(params["final_norm"]["scale"]), config.norm_eps)
    return head(config, params, final).logits()[:, 0]
