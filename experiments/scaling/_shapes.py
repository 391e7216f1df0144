"""Decoders of known sizes, and the shapes of their batches."""

import dataclasses

import jax
import numpy as np

from kd_jax.models.decoder import DecoderConfig

TINY = DecoderConfig(
    vocab=512, width=64, depth=2, heads=4, kv_heads=2, head_dim=16, mlp=128, tied=True
)
SMALL = DecoderConfig(
    vocab=512, width=128, depth=4, heads=4, kv_heads=2, head_dim=32, mlp=384, tied=True
)
LLAMA_1B = DecoderConfig(  # TinyLlama-1.1B
    vocab=32000,
    width=2048,
    depth=22,
    heads=32,
    kv_heads=4,
    head_dim=64,
    mlp=5632,
    dtype="bfloat16",
)
LLAMA_7B = DecoderConfig(  # Llama-2-7B
    vocab=32000,
    width=4096,
    depth=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp=11008,
    dtype="bfloat16",
)
LLAMA_70B = DecoderConfig(  # Llama-2-70B
    vocab=32000,
    width=8192,
    depth=80,
    heads=64,
    kv_heads=8,
    head_dim=128,
    mlp=28672,
    dtype="bfloat16",
)


def frozen(config: DecoderConfig) -> DecoderConfig:
    """The same model as it is kept when it is not trained: its parameters in the compute dtype."""
    return dataclasses.replace(config, param_dtype=config.dtype)


def batch(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A text batch."""
    of = jax.ShapeDtypeStruct
    return {
        "inputs": of((rows, length), np.int32),
        "targets": of((rows, length), np.int32),
        "weights": of((rows, length), np.float32),
        "index": of((rows,), np.int32),
    }
