"""The decoder's parameters: their shapes, and how they are drawn."""

import math
import re
import zlib

import jax
import jax.numpy as jnp

from kd_jax.models import layout
from kd_jax.models.config import DecoderConfig
from kd_jax.trees import nest
from kd_jax.types import PyTree

INIT_STD = 0.02  # of embeddings, as in GPT-2 and the models this one covers


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape}, layers stacked."""
    L, D, F, K = config.depth, config.width, config.mlp, config.head_dim
    queries, keys = config.heads * K, config.kv_heads * K
    experts = (config.experts,) if config.experts else ()
    outs = {"q": queries, "k": keys, "v": keys}
    shapes = {"embed/embedding": (config.vocab, D), "final_norm/scale": (D,)}
    shapes |= {f"layers/{name}/scale": (L, D) for name in ("attn_norm", "mlp_norm")}
    shapes |= {f"layers/attn/{name}/kernel": (L, D, out) for name, out in outs.items()}
    shapes |= {
        "layers/attn/o/kernel": (L, queries, D),
        "layers/mlp/down/kernel": (L, *experts, F, D),
    }
    shapes |= {f"layers/mlp/{name}/kernel": (L, *experts, D, F) for name in ("gate", "up")}
    if experts:
        shapes["layers/mlp/router/kernel"] = (L, D, *experts)
    if config.qkv_bias:
        shapes |= {f"layers/attn/{name}/bias": (L, out) for name, out in outs.items()}
    if config.qk_norm:
        shapes |= {f"layers/attn/{name}_norm/scale": (L, K) for name in ("q", "k")}
    if not config.tied:
        shapes["unembed/embedding"] = (config.vocab, D)
    return shapes


def init(config: DecoderConfig, key: jax.Array) -> PyTree:
    """As `decoder` says."""
    dtype = jnp.dtype(config.param_dtype)

    def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith("/scale"):
            return jnp.ones(shape, dtype)
        if path.endswith("/bias"):
            return jnp.zeros(shape, dtype)
        std = INIT_STD if path.endswith("/embedding") else 1 / math.sqrt(shape[-2])
        if re.fullmatch("layers/(attn/o|mlp/down)/kernel", path):
            std /= math.sqrt(2 * config.depth)
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        drawn = jax.random.truncated_normal(path_key, -2.0, 2.0, shape, jnp.float32)
        return (std * drawn).astype(dtype)

    params = nest({path: leaf(path, shape) for path, shape in shapes(config).items()})
    return params if config.scan else layout.unstack(params)
