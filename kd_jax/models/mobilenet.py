"""MobileNetV2 (Sandler et al., arXiv 1801.04381): inverted residuals with linear bottlenecks."""

import dataclasses
from typing import NamedTuple

import jax

from kd_jax.axes import named
from kd_jax.convolution import Convolve, direct
from kd_jax.models.common import Places
from kd_jax.models.convolution import (
    DEPTHWISE_RULES,
    Conv,
    Layers,
    classifier,
    normed,
    stage_ends,
)
from kd_jax.models.norms import Norm, batch_norm
from kd_jax.types import Model

RULES = DEPTHWISE_RULES


class Stage(NamedTuple):
    """`blocks` blocks of `width` channels, the first with the stride; expansion: by how much a
    block is wider inside (1: it has no expanding convolution)."""

    expansion: int
    width: int
    blocks: int
    stride: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetConfig:
    """Sizes of a MobileNetV2; the defaults are the student of half width for 32 x 32 images that
    the tables of feature distillation on CIFAR-100 have."""

    stem: int = 16
    """Channels behind the first convolution, 3 x 3."""
    stem_stride: int = 2
    """Its stride."""
    stages: tuple[Stage, ...] = (
        Stage(1, 8, 1, 1),
        Stage(6, 12, 2, 1),
        Stage(6, 16, 3, 2),
        Stage(6, 32, 4, 2),
        Stage(6, 48, 3, 1),
        Stage(6, 80, 3, 2),
        Stage(6, 160, 1, 1),
    )
    """Stages of blocks (table 2 of the paper: t, c, n, s)."""
    last: int = 1280
    """Channels of the 1 x 1 convolution before the mean over the image."""
    channels: int = 3
    """Channels of the images, C."""
    classes: int = 10
    """Logits."""

    def __post_init__(self):
        sizes = (self.stem, self.stem_stride, self.last, self.channels, self.classes)
        if not self.stages or min(*sizes, *(x for stage in self.stages for x in stage)) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")

    @property
    def ends(self) -> tuple[str, ...]:
        """The place of each stage's last block."""
        return stage_ends([stage.blocks for stage in self.stages])


def mobilenet_v2(
    config: MobileNetConfig, *, norm: Norm | None = None, convolve: Convolve = direct
) -> Model:
    """A 3x3 stem, stages of inverted residuals, a 1x1 convolution, the mean, a linear head.

    A block is a 1x1 convolution to expansion * width channels, a 3x3 one of each channel by itself,
    with the stride, and a 1x1 one back; all with a norm, the first two with relu6. Where the shape
    stays, its input is added. No dropout.

    norm, convolve, state and inputs as in `resnet.resnet`.
    init(key): {"stem", "stem_norm", "block_i": {"expand", "expand_norm", "depthwise", ...,
        "project", ...}, "last", "last_norm", "head"}, see `convolution.classifier`.
    taps and add: "block_0" on [B, H, W, width], "last" [B, H, W, last], "pooled" [B, last].
    """
    convs = {"stem": Conv(3, config.channels, config.stem, config.stem_stride)}
    # Name, whether it expands, whether its input is added.
    blocks: list[tuple[str, bool, bool]] = []
    inputs = config.stem
    for stage in config.stages:
        for i in range(stage.blocks):
            name, stride = f"block_{len(blocks)}", stage.stride if i == 0 else 1
            wide = inputs * stage.expansion
            if stage.expansion > 1:
                convs[f"{name}/expand"] = Conv(1, inputs, wide)
            convs[f"{name}/depthwise"] = Conv(3, wide, wide, stride, depthwise=True)
            convs[f"{name}/project"] = Conv(1, wide, stage.width)
            blocks.append((name, stage.expansion > 1, stride == 1 and inputs == stage.width))
            inputs = stage.width
    convs["last"] = Conv(1, inputs, config.last)

    def body(layers: Layers, x: jax.Array, place: Places) -> jax.Array:
        x = jax.nn.relu6(layers("stem", x))
        for name, expands, residual in blocks:
            y = jax.nn.relu6(layers(f"{name}/expand", x)) if expands else x
            y = jax.nn.relu6(layers(f"{name}/depthwise", y))
            y = layers(f"{name}/project", y)
            x = place(name, named(x + y if residual else y, "batch", None, None, None))
        return place("last", jax.nn.relu6(layers("last", x)))

    places = (*(name for name, _, _ in blocks), "last")
    outline = normed(convs, (config.last, config.classes))
    return classifier(outline, places, body, batch_norm() if norm is None else norm, convolve)
