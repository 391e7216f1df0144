"""ResNets (He et al., arXiv 1512.03385): basic or bottleneck blocks, batch or group norm."""

import dataclasses
from typing import ClassVar

import jax

from kd_jax.axes import named
from kd_jax.convolution import Convolve, direct
from kd_jax.models.common import Places
from kd_jax.models.convolution import RULES, Conv, Layers, Outline, classifier, max_pool
from kd_jax.models.norms import Norm, batch_norm
from kd_jax.types import Model

__all__ = ["RULES", "ImageNetResNetConfig", "ResNetConfig", "resnet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of a residual network; the defaults are ResNet-20, for 32 x 32 images."""

    blocks: tuple[int, ...] = (3, 3, 3)
    """Blocks in each stage; a stage after the first halves the image."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage, of its blocks' outputs."""
    stem: int | None = None
    """Channels behind the first convolution; None: those of the first stage."""
    channels: int = 3
    """Channels of the images, C."""
    classes: int = 10
    """Logits."""

    # Fields of ImageNetResNetConfig.
    stem_side: ClassVar[int] = 3
    stem_stride: ClassVar[int] = 1
    pool: ClassVar[bool] = False
    bottleneck: ClassVar[bool] = False

    def __post_init__(self):
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(f"blocks, widths: got {self}, takes as many of one as of the other")
        sizes = (self.first, self.stem_side, self.stem_stride, self.channels, self.classes)
        if min(*self.blocks, *self.widths, *sizes) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if self.bottleneck and any(width % 4 for width in self.widths):
            raise ValueError(f"widths: got {self.widths}, takes multiples of 4 with bottlenecks")

    @property
    def first(self) -> int:
        """Channels behind the first convolution."""
        return self.widths[0] if self.stem is None else self.stem


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetResNetConfig(ResNetConfig):
    """Sizes of a residual network for 224 x 224 images; the defaults are ResNet-18."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    classes: int = 1000
    stem_side: int = 7
    """Height and width of the first convolution."""
    stem_stride: int = 2
    """Its stride."""
    pool: bool = True
    """A 3 x 3 maximum of stride 2 behind it."""
    bottleneck: bool = False
    """Whether a block has three convolutions with a quarter of the channels inside, or two."""


def resnet(config: ResNetConfig, *, norm: Norm | None = None, convolve: Convolve = direct) -> Model:
    """A stem, stages of residual blocks, the mean over the image, a linear head.

    A block is relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))) of 3x3 convolutions, the first
    with the stride; with bottlenecks of a 1x1, a 3x3 and a 1x1 one, the second with the stride, as
    in released weights (in the paper the first). The shortcut is a 1x1 convolution with a norm
    where the shape changes (option B of the paper), else the identity.

    norm: `norms.batch_norm()` by default, or `norms.group_norm()`. With batch norm, apply takes the
        statistics as `state` (at first `model.state()`) and gives the new ones when train is true.
    convolve: `convolution.as_product` for several small networks under `vmap`.
    init(key): {"stem": {"kernel"}, "stem_norm", "block_i": {"conv_0", "norm_0", ...}, "head"}, see
        `convolution.classifier`.
    apply: inputs["inputs"] [B, H, W, C], u8 or floating. taps and add: "block_0" on, the blocks'
        outputs [B, H, W, width], and "pooled" [B, width].
    """
    stem = Conv(config.stem_side, config.channels, config.first, config.stem_stride)
    convs = {"stem": stem}
    norms = {"stem_norm": config.first}
    blocks: list[str] = []
    last = 2 if config.bottleneck else 1
    inputs = config.first
    for stage, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
        for i in range(count):
            name, stride = f"block_{len(blocks)}", 2 if stage > 0 and i == 0 else 1
            if config.bottleneck:
                inner = width // 4
                own = [Conv(1, inputs, inner), Conv(3, inner, inner, stride), Conv(1, inner, width)]
            else:
                own = [Conv(3, inputs, width, stride), Conv(3, width, width)]
            for k, conv in enumerate(own):
                convs[f"{name}/conv_{k}"] = conv
                norms[f"{name}/norm_{k}"] = conv.outputs
            if stride != 1 or inputs != width:
                convs[f"{name}/shortcut"] = Conv(1, inputs, width, stride)
                norms[f"{name}/shortcut_norm"] = width
            blocks.append(name)
            inputs = width

    def body(layers: Layers, x: jax.Array, place: Places) -> jax.Array:
        x = jax.nn.relu(layers("stem", x))
        if config.pool:
            x = max_pool(x)
        for name in blocks:
            y = x
            for k in range(last):
                y = jax.nn.relu(layers.norm(f"{name}/norm_{k}", layers.conv(f"{name}/conv_{k}", y)))
            y = layers.norm(f"{name}/norm_{last}", layers.conv(f"{name}/conv_{last}", y))
            if f"{name}/shortcut" in convs:
                x = layers(f"{name}/shortcut", x)
            x = place(name, named(jax.nn.relu(x + y), "batch", None, None, None))
        return x

    outline = Outline(convs, norms, (config.widths[-1], config.classes))
    return classifier(outline, blocks, body, batch_norm() if norm is None else norm, convolve)
