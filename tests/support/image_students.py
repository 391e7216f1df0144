"""Small image classifiers with drawn weights: what the tests of students are about."""

import functools
import re

import jax
import numpy as np

from kd_jax.models import mixer, mobilenet, shufflenet, wide_resnet
from kd_jax.trees import map_with_path

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
