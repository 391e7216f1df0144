"""Some layers of a decoder as a model of their own."""

import dataclasses

import jax
import numpy as np
import pytest

from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.models.parts import rms_norm
from kd_jax.models.truncated import selected, spread, truncated, truncated_config
from kd_jax.trees import check_same

CONFIG = DecoderConfig(
    vocab=24, width=8, depth=3, heads=2, kv_heads=1, head_dim=4, mlp=12, remat=False
)
IDS = {"inputs": np.random.default_rng(0).integers(0, 24, (2, 5))}


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "unrolled"])
def test_it_computes_what_the_whole_model_has_after_those_layers(scan):
    config = dataclasses.replace(CONFIG, scan=scan)
    model = decoder(config)
    params = model.init(jax.random.key(0))
    small = truncated_config(config, 2)
    kept = truncated(config, params, 2)
    check_same("kept", kept, "shapes", jax.eval_shape(decoder(small).init, jax.random.key(0)))
    head = jax.jit(decoder(small).apply)(kept, IDS).head
    stream = jax.jit(lambda p: model.apply(p, IDS, taps=("block_1",)).taps)(params)["block_1"]
    final = rms_norm(stream, params["final_norm"]["scale"], config.norm_eps)
    np.testing.assert_allclose(head.hidden, final, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(head.unembedding, params["unembed"]["embedding"])
    assert truncated_config(config, 3) == config


@pytest.mark.parametrize("depth", [0, 4])
def test_a_depth_that_is_not_there_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth: got {depth}, takes 1 to 3"):
        truncated(CONFIG, {}, depth)


@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "unrolled"])
def test_a_layer_less_is_a_layer_that_adds_nothing(scan):
    config = dataclasses.replace(CONFIG, scan=scan)
    params = decoder(config).init(jax.random.key(0))
    idle = jax.tree.map(lambda x: x, params)
    layers = idle["layers"]
    for kernel in (("attn", "o"), ("mlp", "down")):
        if scan:
            old = layers[kernel[0]][kernel[1]]["kernel"]
            layers[kernel[0]][kernel[1]]["kernel"] = old.at[1].set(0.0)
        else:
            old = layers["1"][kernel[0]][kernel[1]]["kernel"]
            layers["1"][kernel[0]][kernel[1]]["kernel"] = 0 * old
    kept = selected(config, params, (0, 2))
    small = decoder(truncated_config(config, 2))
    check_same("kept", kept, "shapes", jax.eval_shape(small.init, jax.random.key(0)))
    np.testing.assert_allclose(
        jax.jit(small.apply)(kept, IDS).head.hidden,
        jax.jit(decoder(config).apply)(idle, IDS).head.hidden,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("layers", [(), (0, 3), (1, 0), (1, 1), (-1,)])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="layers: got .*, takes some of 0 to 2, in order"):
        selected(CONFIG, {}, layers)


def test_layers_are_spread_from_the_first_to_the_last():
    deep = dataclasses.replace(CONFIG, depth=30)
    assert spread(deep, 6) == (0, 6, 12, 17, 23, 29)
    assert spread(deep, 1) == (0,)
    assert spread(CONFIG, 3) == (0, 1, 2)
