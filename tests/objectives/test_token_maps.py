"""Tokens as maps, and exits of transformer blocks on them, against a slow version of their own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.images import KEY, Laws, image_batch

from kd_jax.losses.logits import amplified_target
from kd_jax.models.mixer import MixerConfig, mixer
from kd_jax.models.vit import ViTConfig, vit
from kd_jax.objectives.transfer import maps
from kd_jax.objectives.transfer.token_exits import token_exits
from kd_jax.objectives.transfer.token_maps import folded, with_maps
from kd_jax.types import Logits, ModelOutput

BATCH = image_batch()
SIZES = {"image": 4, "patch": 1, "channels": 2, "width": 8, "depth": 2, "classes": 3}
VIT = vit(ViTConfig(heads=2, mlp=8, **SIZES))
MIXER = mixer(MixerConfig(patch_mlp=4, channel_mlp=8, **SIZES))
DRAW = np.random.default_rng(0)


def test_places_are_row_by_row():
    rows = jnp.arange(16.0)[None, :, None] + jnp.zeros((2, 1, 3))
    np.testing.assert_array_equal(folded(rows)[1, :, :, 2], np.arange(16).reshape(4, 4))
    token = jnp.full((2, 1, 3), -1.0)
    found = folded(jnp.concatenate([token, rows], 1), class_tokens=1)
    np.testing.assert_array_equal(found, folded(rows))
    for wrong, message in ((rows[:, :15], "got 15 patches"), (rows[0], "takes .B, N, D.")):
        with pytest.raises(ValueError, match=message):
            folded(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("model", [VIT, MIXER], ids=["vit", "mixer"])
def test_only_what_is_asked_for_is_found(model):
    params = model.init(KEY)
    output = with_maps(model).apply(params, BATCH, taps=("block_1/map", "block_0", "pooled"))
    plain = model.apply(params, BATCH, taps=("block_0", "block_1", "pooled"))
    assert set(output.taps) == {"block_1/map", "block_0", "pooled"}
    want = plain.taps["block_1"].reshape(6, 4, 4, 8)
    np.testing.assert_array_equal(output.taps["block_1/map"], want)
    np.testing.assert_array_equal(output.head.logits(), plain.head.logits())


def norm(weights, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights["scale"] + weights["bias"]


def line(weights, x):
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))


def slow_exit(weights, tokens, class_tokens, heads, mergers, blocks):
    """One example [N, D], in float64 and loops."""
    first, x = tokens[:class_tokens], tokens[class_tokens:]
    for i in range(mergers):
        side = math.isqrt(len(x))
        x = x.reshape(side, side, -1)
        four = [
            np.concatenate([x[r, c], x[r + 1, c], x[r, c + 1], x[r + 1, c + 1]])
            for r in range(0, side, 2)
            for c in range(0, side, 2)
        ]
        x = line(
            weights[f"merge_{i}"]["linear"], norm(weights[f"merge_{i}"]["norm"], np.array(four))
        )
        if i == 0 or i < mergers - 1:
            x = gelu(x)
    x = np.concatenate([first, x])
    for i in range(blocks):
        block, width = weights[f"block_{i}"], x.shape[1] // heads
        q, k, v = np.split(line(block["qkv"], norm(block["attn_norm"], x)), 3, 1)
        mixed = np.zeros_like(x)
        for h in range(heads):
            own = slice(h * width, (h + 1) * width)
            scores = np.exp(q[:, own] @ k[:, own].T / width**0.5)
            mixed[:, own] = scores / scores.sum(1, keepdims=True) @ v[:, own]
        x = x + line(block["out"], mixed)
        x = x + line(block["down"], gelu(line(block["up"], norm(block["mlp_norm"], x))))
    return line(weights["head"], x[0] if class_tokens else x.mean(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("class_tokens", "grid", "mergers", "blocks"), [(0, 3, 0, 1), (1, 2, 1, 2), (0, 1, 2, 0)]
)
def test_exits_by_hand(class_tokens, grid, mergers, blocks):
    part = token_exits(
        ("x",), (blocks,), 2.0, grid=grid, heads=2, class_tokens=class_tokens, power=1.5
    )
    tokens = DRAW.standard_normal((6, 16 + class_tokens, 8))
    student = ModelOutput(Logits(jnp.zeros((6, 3))), {"x": jnp.array(tokens, jnp.float32)})
    teacher = ModelOutput(Logits(jnp.array(DRAW.standard_normal((6, 3)), jnp.float32)))
    made = part.init(KEY, student, teacher, BATCH)
    aux = jax.tree.map(lambda x: x + 0.3 * DRAW.standard_normal(x.shape).astype(np.float32), made)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), aux)["exit_0"]
    assert sum(name.startswith("merge") for name in weights) == mergers
    z = [slow_exit(weights, x, class_tokens, 2, mergers, blocks) for x in tokens]
    values = amplified_target(jnp.array(z), teacher.head.logits(), BATCH["targets"], power=1.5)
    want = 2 * np.average(values, weights=BATCH["weights"])
    np.testing.assert_allclose(part.loss(aux, student, teacher, BATCH).value, want, rtol=1e-4)


def test_sizes_that_do_not_fit():
    def init(tokens, **settings):
        student = ModelOutput(Logits(jnp.zeros((6, 3))), {"x": jnp.zeros((6, tokens, 8))})
        return token_exits(("x",), (1,), **settings).init(KEY, student, student, BATCH)

    for settings, message in (
        ({"tokens": 16, "heads": 3}, "heads: got 3, takes a divisor of width 8"),
        ({"tokens": 36, "grid": 1}, "grid: got 1, takes one to which 6 patches can be halved"),
        ({"tokens": 16, "class_tokens": 2}, "class_tokens: got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            init(**settings)
    with pytest.raises(ValueError, match="blocks: got"):
        token_exits(("x",), (1, 2))


@pytest.mark.slow  # many compilations
def test_laws():
    Laws(
        {
            "exits": token_exits(("block_0", "block_1"), (1, 1), grid=2, heads=2, power=1.5),
            "affinity": maps.affinity("block_1/map", "deep"),
            "attention": maps.attention(("block_0/map",), ("map",)),
        },
        BATCH,
        student=with_maps(VIT),
    ).check()
