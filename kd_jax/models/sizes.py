"""Decoders of published models, by name: their shapes, for a plan before the weights are there."""

from kd_jax.models.config import DecoderConfig

SMOLLM2_135M = DecoderConfig(
    vocab=49152,
    width=576,
    depth=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    mlp=1536,
    rope_theta=100_000.0,
    tied=True,
)
TINYLLAMA_1B = DecoderConfig(
    vocab=32000,
    width=2048,
    depth=22,
    heads=32,
    kv_heads=4,
    head_dim=64,
    mlp=5632,
    dtype="bfloat16",
)
LLAMA2_7B = DecoderConfig(
    vocab=32000,
    width=4096,
    depth=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp=11008,
    dtype="bfloat16",
)
LLAMA2_70B = DecoderConfig(
    vocab=32000,
    width=8192,
    depth=80,
    heads=64,
    kv_heads=8,
    head_dim=128,
    mlp=28672,
    dtype="bfloat16",
)
