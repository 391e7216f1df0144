"""ShuffleNetV2 (Ma et al., arXiv 1807.11164): half the channels pass a block, then a shuffle."""

import dataclasses

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.models.common import Places
from kd_jax.models.convolution import (
    DEPTHWISE_RULES,
    Conv,
    Layers,
    classifier,
    max_pool,
    normed,
    stage_ends,
)
from kd_jax.models.norms import Norm, batch_norm
from kd_jax.types import Model

RULES = DEPTHWISE_RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffleNetConfig:
    """Sizes of a ShuffleNetV2; the defaults are width 1.0 for 32 x 32 images, as the tables of
    feature distillation on CIFAR-100 have it."""

    stem: int = 24
    """Channels behind the first convolution."""
    stem_side: int = 1
    """Its height and width."""
    stem_stride: int = 1
    """Its stride."""
    pool: bool = False
    """A 3 x 3 maximum of stride 2 behind it (224 x 224 images)."""
    blocks: tuple[int, ...] = (4, 8, 4)
    """Blocks of each stage; its first halves the image."""
    widths: tuple[int, ...] = (116, 232, 464)
    """Channels of each stage; even."""
    last: int = 1024
    """Channels of the 1 x 1 convolution before the mean over the image."""
    channels: int = 3
    """Channels of the images, C."""
    classes: int = 10
    """Logits."""

    def __post_init__(self):
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(f"blocks, widths: got {self}, takes as many of one as of the other")
        sizes = (self.stem, self.stem_side, self.stem_stride, self.last)
        if min(*sizes, *self.blocks, *self.widths, self.channels, self.classes) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if any(width % 2 for width in self.widths):
            raise ValueError(f"widths: got {self.widths}, takes even ones")

    @property
    def ends(self) -> tuple[str, ...]:
        """The place of each stage's last block."""
        return stage_ends(self.blocks)


def shuffle(x: jax.Array) -> jax.Array:
    """Channels of both halves in turn: (a0, a1, .., b0, b1, ..) -> (a0, b0, a1, b1, ..)."""
    pairs = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return jnp.swapaxes(pairs, -1, -2).reshape(x.shape)


def shufflenet_v2(config: ShuffleNetConfig, *, norm: Norm | None = None) -> Model:
    """A stem, stages of shuffle units, a 1x1 convolution, the mean, a linear head.

    A unit keeps the first half of its channels and takes the second through 1x1, 3x3 (each channel
    by itself) and 1x1 convolutions; the two are joined and shuffled. The first unit of a stage
    takes all channels through both ways, the first of them 3x3 and 1x1, with stride 2. All
    convolutions have a norm, the 1x1 ones then a relu (figure 3c and d).

    norm, state and inputs as in `resnet.resnet`.
    init(key): {"stem", "stem_norm", "block_i": {"in", "depthwise", "out", in a stage's first also
        "pass_depthwise", "pass_out", each with its "_norm"}, "last", "last_norm", "head"}, see
        `convolution.classifier`.
    taps and add: "block_0" on [B, H, W, width], "last" [B, H, W, last], "pooled" [B, last].
    """
    convs = {"stem": Conv(config.stem_side, config.channels, config.stem, config.stem_stride)}
    blocks: list[tuple[str, bool]] = []  # name, whether it halves the image
    inputs = config.stem
    for count, width in zip(config.blocks, config.widths, strict=True):
        half = width // 2
        for i in range(count):
            name = f"block_{len(blocks)}"
            stride, taken = (2, inputs) if i == 0 else (1, half)
            if i == 0:
                convs[f"{name}/pass_depthwise"] = Conv(3, inputs, inputs, 2, depthwise=True)
                convs[f"{name}/pass_out"] = Conv(1, inputs, half)
            convs[f"{name}/in"] = Conv(1, taken, half)
            convs[f"{name}/depthwise"] = Conv(3, half, half, stride, depthwise=True)
            convs[f"{name}/out"] = Conv(1, half, half)
            blocks.append((name, i == 0))
            inputs = width
    convs["last"] = Conv(1, inputs, config.last)

    def body(layers: Layers, x: jax.Array, place: Places) -> jax.Array:
        x = jax.nn.relu(layers("stem", x))
        if config.pool:
            x = max_pool(x)
        for name, halves in blocks:
            if halves:
                kept = layers(f"{name}/pass_depthwise", x)
                kept = jax.nn.relu(layers(f"{name}/pass_out", kept))
            else:
                kept, x = jnp.split(x, 2, axis=-1)
            x = jax.nn.relu(layers(f"{name}/in", x))
            x = layers(f"{name}/depthwise", x)
            x = jax.nn.relu(layers(f"{name}/out", x))
            x = shuffle(jnp.concatenate([kept, x], axis=-1))
            x = place(name, named(x, "batch", None, None, None))
        return place("last", jax.nn.relu(layers("last", x)))

    places = (*(name for name, _ in blocks), "last")
    outline = normed(convs, (config.last, config.classes))
    return classifier(outline, places, body, batch_norm() if norm is None else norm)
