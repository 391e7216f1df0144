"""Small image classifiers with drawn weights, and what holds of every image classifier."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import mixer, mobilenet, shufflenet, wide_resnet
from kd_jax.trees import flatten, map_with_path, match_rules

MIXER = mixer.MixerConfig(
    image=8, patch=4, channels=2, width=16, depth=2, patch_mlp=8, channel_mlp=24, classes=5
)
MOBILENET = mobilenet.MobileNetConfig(
    stem=8,
    stages=(mobilenet.Stage(1, 8, 1, 1), mobilenet.Stage(2, 16, 2, 2)),
    last=24,
    channels=2,
    classes=5,
)
SHUFFLENET = shufflenet.ShuffleNetConfig(
    stem=8, stem_side=3, pool=True, blocks=(2, 1), widths=(16, 24), last=32, channels=2, classes=5
)
WIDE = wide_resnet.WideResNetConfig(depth=10, widen=1, channels=2, classes=5)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 2)).astype(np.uint8)
FLOATS = IMAGES.astype(np.float32) / 255

MODELS = {
    "mixer": (mixer.mixer(MIXER), mixer.RULES),
    "mobilenet": (mobilenet.mobilenet_v2(MOBILENET), mobilenet.RULES),
    "shufflenet": (shufflenet.shufflenet_v2(SHUFFLENET), shufflenet.RULES),
    "wide": (wide_resnet.wide_resnet(WIDE), wide_resnet.RULES),
}
TAPS = {
    "mixer": {"embed": (8, 4, 16), "block_0": (8, 4, 16), "block_1": (8, 4, 16), "pooled": (8, 16)},
    "mobilenet": {
        "block_0": (8, 4, 4, 8),
        "block_1": (8, 2, 2, 16),
        "block_2": (8, 2, 2, 16),
        "last": (8, 2, 2, 24),
        "pooled": (8, 24),
    },
    "shufflenet": {
        "block_0": (8, 2, 2, 16),
        "block_1": (8, 2, 2, 16),
        "block_2": (8, 1, 1, 24),
        "last": (8, 1, 1, 32),
        "pooled": (8, 32),
    },
    "wide": {
        "block_0": (8, 8, 8, 16),
        "block_1": (8, 4, 4, 32),
        "block_2": (8, 2, 2, 64),
        "pooled": (8, 64),
    },
}


def drawn(shapes):
    """Away from initialisation, so that norms, biases and statistics matter; variances stay > 0."""
    draw = np.random.default_rng(1).standard_normal

    def leaf(path, x):
        value = draw(x.shape).astype(np.float32)
        if x.ndim > 1:
            return value / np.sqrt(np.float32(x.size / x.shape[-1]))
        return 1 + 0.2 * np.abs(value) if re.search("scale|var", path) else 0.2 * value

    return map_with_path(leaf, shapes)


@functools.cache
def setup(name):
    model, _ = MODELS[name]
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    state = drawn(jax.eval_shape(model.state))

    @functools.partial(jax.jit, static_argnames="train")
    def run(images, add, train=False):
        return model.apply(
            params, {"inputs": images}, state=state, train=train, taps=TAPS[name], add=add
        )

    return params, state, run


def takes_images(run, taps):
    """run(images) -> output with those taps [8, ...]; u8 as floating, and each row by itself."""
    out = run(IMAGES)
    assert out.head.logits().shape == (8, 5)
    assert out.head.logits().dtype == jnp.float32
    assert {k: v.shape for k, v in out.taps.items()} == taps
    np.testing.assert_allclose(out.head.logits(), run(FLOATS).head.logits(), atol=1e-5)
    # The images matter, and each row only to itself.
    other = run(np.concatenate([IMAGES[:4], 255 - IMAGES[4:]])).head.logits()
    np.testing.assert_allclose(out.head.logits()[:4], other[:4], rtol=1e-5, atol=1e-6)
    assert np.abs(out.head.logits()[4:] - other[4:]).max() > 1e-3


def has_a_rule_for_every_parameter(model, rules):
    params = jax.eval_shape(model.init, jax.random.key(0))
    match_rules(rules, params)
    for path, leaf in flatten(params).items():
        first = next(names for pattern, names in rules if re.fullmatch(pattern, path))
        assert len(first) == leaf.ndim, path
