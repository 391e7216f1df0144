"""A decoder whose layers are mixtures of experts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import decode, decoder, layout, moe

CONFIG = decoder.DecoderConfig(
    vocab=32,
    width=8,
    depth=2,
    heads=2,
    kv_heads=2,
    head_dim=4,
    mlp=6,
    experts=4,
    experts_per_token=2,
)
TOKENS = {"inputs": np.random.default_rng(0).integers(0, 32, (8, 4)).astype(np.int32)}


@pytest.mark.slow
def test_layouts_taps_and_decoding_agree():
    unrolled = dataclasses.replace(CONFIG, scan=False)
    params = decoder.decoder(CONFIG).init(jax.random.key(1))
    inputs = {"inputs": jnp.asarray(TOKENS["inputs"])}
    apply, other = (
        jax.jit(functools.partial(decoder.decoder(c).apply, taps=("router", "embed")))
        for c in (CONFIG, unrolled)
    )
    out, apart = apply(params, inputs), other(layout.unstack(params), inputs)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: a.shape == b.shape,
            jax.eval_shape(decoder.decoder(unrolled).init, jax.random.key(0)),
            layout.unstack(params),
        )
    )
    logits = out.head.logits()
    np.testing.assert_allclose(apart.head.logits(), logits, rtol=1e-5, atol=1e-6)
    routed = out.taps["router"]
    assert routed.shape == (2, 8, 4, 4) and routed.dtype == jnp.float32
    np.testing.assert_allclose(apart.taps["router"], routed, rtol=1e-5, atol=1e-6)
    load = moe.expert_load(routed[0], jnp.ones((8, 4)), per_token=2).value
    np.testing.assert_allclose(load.sum(), 1, rtol=1e-6)

    lengths = jnp.full(8, 3)
    prefill = jax.jit(functools.partial(decode.prefill, CONFIG, slots=4))
    first, cache = prefill(params, inputs["inputs"][:, :3], lengths)
    np.testing.assert_allclose(first, logits[:, 2], rtol=1e-5, atol=1e-6)
    step = jax.jit(functools.partial(decode.step, CONFIG))
    second, _ = step(params, cache, inputs["inputs"][:, 3], lengths)
    np.testing.assert_allclose(second, logits[:, 3], rtol=1e-5, atol=1e-6)


def test_what_the_config_refuses():
    with pytest.raises(ValueError, match="experts_per_token: got 5, takes 1 to 4"):
        dataclasses.replace(CONFIG, experts_per_token=5)
    with pytest.raises(ValueError, match="experts: got -1"):
        dataclasses.replace(CONFIG, experts=-1)
    dense = dataclasses.replace(CONFIG, experts=0)
    with pytest.raises(ValueError, match="taps: got router"):
        model = decoder.decoder(dense)
        model.apply(model.init(jax.random.key(0)), TOKENS, taps={"router"})
