"""The residual perceptron and its adapters: values by hand, what stands behind a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import bottleneck, residual_mlp
from kd_jax.models.common import layer_norm
from kd_jax.trees import flatten, match_rules, size

CONFIG = residual_mlp.ResidualMLPConfig(inputs=16, width=6, depth=3, hidden=8, classes=4)
MODEL = residual_mlp.residual_mlp(CONFIG)
PARAMS = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
                      MODEL.init(jax.random.key(0)))  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)
BATCH = {"inputs": IMAGES}


def logits(model, params, **given):
    return model.apply(params, BATCH, **given).head.logits()


def test_values_by_hand():
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    x = IMAGES.reshape(5, -1) / 255 @ p["stem"]["kernel"] + p["stem"]["bias"]

    def norm(x, scale, bias):
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return (x - x.mean(-1, keepdims=True)) / spread * scale + bias

    for i in range(3):
        b = jax.tree.map(lambda x, i=i: x[i], p["blocks"])
        hidden = norm(x, **b["norm"]) @ b["up"]["kernel"] + b["up"]["bias"]
        x = x + np.maximum(hidden, 0) @ b["down"]["kernel"] + b["down"]["bias"]
    expected = norm(x, **p["final_norm"]) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(logits(MODEL, PARAMS), expected, rtol=1e-4, atol=1e-5)


def test_the_stream_is_tapped_and_added_to():
    taps = MODEL.apply(PARAMS, BATCH, taps=("stem", "block_1", "block_2")).taps
    np.testing.assert_allclose(taps["stem"], residual_mlp.stem(PARAMS, IMAGES), rtol=1e-6)
    np.testing.assert_allclose(
        residual_mlp.readout(PARAMS, taps["block_2"]), logits(MODEL, PARAMS), rtol=1e-6
    )
    last = jax.tree.map(lambda x: x[2], PARAMS["blocks"])
    again = residual_mlp.block(last, taps["block_1"])
    np.testing.assert_allclose(again, taps["block_2"], rtol=1e-5, atol=1e-6)
    more = jnp.ones((5, 6))
    added = MODEL.apply(PARAMS, BATCH, taps=("block_1",), add={"block_0": more}).taps["block_1"]
    assert np.abs(added - taps["block_1"]).max() > 0.1


def test_what_stands_behind_a_block_has_its_own_part_and_key():
    seen = []

    def after(part, x, key):
        seen.append(None if key is None else tuple(np.asarray(jax.random.key_data(key))))
        return x + part["shift"][None]

    model = residual_mlp.residual_mlp(CONFIG, after)
    shifts = jnp.sin(jnp.arange(18.0)).reshape(3, 6)
    params = {**PARAMS, "after": {"shift": shifts}}
    add = {f"block_{i}": jnp.broadcast_to(shifts[i], (5, 6)) for i in range(3)}
    np.testing.assert_allclose(
        logits(model, params), logits(MODEL, PARAMS, add=add), rtol=1e-5, atol=1e-6
    )
    assert seen == [None] * 3
    seen.clear()
    logits(model, params, key=jax.random.key(3), train=True)
    assert len(set(seen)) == 3 and None not in seen
    with pytest.raises(ValueError, match="after: got .* takes one entry for each of the 3 blocks"):
        logits(model, {**PARAMS, "after": {"shift": shifts[:1]}})


def test_an_adapter_starts_idle_and_leaves_out_the_residual():
    fresh = bottleneck.init(jax.random.key(1), width=6, size=2)
    x = jax.random.normal(jax.random.key(2), (5, 6))
    np.testing.assert_array_equal(bottleneck.bottleneck(fresh, x), np.zeros((5, 6)))
    assert size(fresh) == 6 * 2 + 2 + 2 * 6 + 6
    trained = jax.tree.map(lambda a: a + 0.3, fresh)
    down = np.maximum(np.asarray(x @ trained["down"]["kernel"]) + 0.3, 0)
    np.testing.assert_allclose(
        bottleneck.bottleneck(trained, x), down @ np.full((2, 6), 0.3) + 0.3, rtol=1e-5
    )


@pytest.mark.slow
def test_every_leaf_has_a_rule_and_the_start_is_what_is_said():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    axes = match_rules(residual_mlp.RULES, shapes)
    for path, leaf in flatten(shapes).items():
        names = axes
        for key in path.split("/"):
            names = names[key]
        assert len(names) == leaf.ndim, path
    wide = residual_mlp.residual_mlp(
        residual_mlp.ResidualMLPConfig(inputs=400, width=300, depth=2, hidden=500, classes=10)
    ).init(jax.random.key(0))
    for kernel, variance in (
        (wide["stem"]["kernel"], 2 / 400),
        (wide["blocks"]["up"]["kernel"], 2 / 300),
        (wide["blocks"]["down"]["kernel"], 1 / 500),
    ):
        np.testing.assert_allclose(kernel.var(), variance, rtol=0.05)
    assert np.abs(wide["blocks"]["up"]["kernel"][0] - wide["blocks"]["up"]["kernel"][1]).max() > 0
    x = jnp.ones((2, 300)).at[1].set(jnp.arange(300.0))
    same = layer_norm(wide["final_norm"], x)
    np.testing.assert_allclose(same[1].std(), 1.0, rtol=1e-3)
