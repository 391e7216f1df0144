"""The decoder's parameters, their rules and first values, its config and its parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import rope
from kd_jax.models.decoder import DecoderConfig, decoder, rules
from kd_jax.models.parts import matmul
from kd_jax.trees import flatten, match_rules

TINY = DecoderConfig(vocab=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48)


@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "unrolled"])
@pytest.mark.parametrize(
    "options",
    [{}, {"tied": True}, {"qkv_bias": True, "qk_norm": True}],
    ids=["plain", "tied", "bias and norm"],
)
def test_every_parameter_has_a_rule(options, scan):
    config = dataclasses.replace(TINY, scan=scan, **options)
    params = jax.eval_shape(decoder(config).init, jax.random.key(0))
    axes = match_rules(rules(config), params)
    for path, leaf in flatten(params).items():
        named = axes
        for key in path.split("/"):
            named = named[key]
        assert len(named) == len(leaf.shape), path
        assert ("layers" in named) == (scan and path.startswith("layers/")), path


def test_the_contracts_layout():
    config = dataclasses.replace(TINY, qkv_bias=True, qk_norm=True)
    params = jax.eval_shape(decoder(config).init, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    assert shapes == {
        "embed/embedding": (64, 32),
        "layers/attn_norm/scale": (2, 32),
        "layers/attn/q/kernel": (2, 32, 32),
        "layers/attn/q/bias": (2, 32),
        "layers/attn/k/kernel": (2, 32, 16),
        "layers/attn/k/bias": (2, 16),
        "layers/attn/v/kernel": (2, 32, 16),
        "layers/attn/v/bias": (2, 16),
        "layers/attn/o/kernel": (2, 32, 32),
        "layers/attn/q_norm/scale": (2, 8),
        "layers/attn/k_norm/scale": (2, 8),
        "layers/mlp_norm/scale": (2, 32),
        "layers/mlp/gate/kernel": (2, 32, 48),
        "layers/mlp/up/kernel": (2, 32, 48),
        "layers/mlp/down/kernel": (2, 48, 32),
        "final_norm/scale": (32,),
        "unembed/embedding": (64, 32),
    }


@pytest.mark.slow
def test_initial_scales():
    config = dataclasses.replace(TINY, width=128, mlp=256, depth=3, param_dtype="bfloat16")
    params = flatten(jax.jit(decoder(config).init)(jax.random.key(0)))
    cut = 0.8796  # standard deviation of a standard normal cut at two
    expected = {
        "embed/embedding": 0.02,
        "layers/attn/q/kernel": 128**-0.5,
        "layers/attn/o/kernel": 32**-0.5 / 6**0.5,
        "layers/mlp/down/kernel": 256**-0.5 / 6**0.5,
    }
    for path, std in expected.items():
        assert params[path].dtype == jnp.bfloat16
        np.testing.assert_allclose(params[path].astype("f4").std(), cut * std, rtol=0.05)


def test_the_narrow_product_has_the_plain_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (8, 5))
    got, pull = jax.vjp(matmul, x, kernel)
    wide, wide_pull = jax.vjp(
        lambda x, k: x @ k, x.astype("f4"), kernel.astype("bfloat16").astype("f4")
    )
    np.testing.assert_allclose(got.astype("f4"), wide, rtol=0.01, atol=0.01)
    to_x, to_kernel = pull(jnp.ones_like(got))
    wide_to_x, wide_to_kernel = wide_pull(jnp.ones_like(wide))
    assert to_x.dtype == jnp.bfloat16 and to_kernel.dtype == jnp.float32
    np.testing.assert_allclose(to_x.astype("f4"), wide_to_x, rtol=0.01, atol=0.01)
    np.testing.assert_allclose(to_kernel, wide_to_kernel, rtol=1e-5, atol=1e-5)


def test_rope_scalings():
    plain = rope.frequencies(8, 500.0)
    np.testing.assert_allclose(plain, [1.0, 500**-0.25, 500**-0.5, 500**-0.75], rtol=1e-6)
    linear = rope.frequencies(8, 500.0, rope.LinearScaling(factor=4.0))
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    # 32 * f / 2 pi = 5.093, 1.077, 0.2278, 0.0482 turns: kept; mixed; divided; divided.
    llama = rope.frequencies(8, 500.0, rope.Llama3Scaling(factor=8.0, original_length=32))
    part = (32 * 500**-0.25 / (2 * np.pi) - 1) / 3
    mixed = plain[1] * ((1 - part) / 8 + part)
    np.testing.assert_allclose(llama, [1.0, mixed, plain[2] / 8, plain[3] / 8], rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"kv_heads": 3},
        {"head_dim": 7},
        {"depth": 0},
        {"window": 0},
        {"softcap": -1.0},
        {"dtype": "float8"},
        {"remat": False, "remat_save": ("qkv",)},
        {"remat": False, "remat_offload": ("qkv",)},
        {"remat_save": ("mlp",)},
        {"remat_offload": ("qkv", "gates")},
        {"remat_save": ("qkv", "mixed"), "remat_offload": ("mixed",)},
    ],
    ids=lambda change: list(change)[-1],
)
def test_bad_configs_name_the_field(change):
    with pytest.raises(ValueError, match=f"{list(change)[-1]}: got .* takes"):
        dataclasses.replace(TINY, **change)
