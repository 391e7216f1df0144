"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146) for small images."""

import dataclasses

import jax

from kd_jax.axes import named
from kd_jax.models.common import Places
from kd_jax.models.convolution import RULES, Conv, Layers, Outline, classifier, stage_ends
from kd_jax.models.norms import Norm, batch_norm
from kd_jax.types import Model

__all__ = ["RULES", "WideResNetConfig", "wide_resnet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideResNetConfig:
    """Sizes of WRN-depth-widen; the defaults are WRN-16-2."""

    depth: int = 16
    """Convolutions, shortcuts not counted: 6 n + 4 for n blocks in each of the three stages."""
    widen: int = 2
    """The stages have 16, 32 and 64 times as many channels, k."""
    channels: int = 3
    """Channels of the images, C."""
    classes: int = 10
    """Logits."""

    def __post_init__(self):
        if min(self.widen, self.channels, self.classes) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth: got {self.depth}, takes 10, 16, 22 and so on")

    @property
    def blocks(self) -> int:
        """Blocks of each stage, n."""
        return (self.depth - 4) // 6

    @property
    def ends(self) -> tuple[str, ...]:
        """The place of each stage's last block."""
        return stage_ends([self.blocks] * 3)


def wide_resnet(config: WideResNetConfig, *, norm: Norm | None = None) -> Model:
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks, norm, relu, mean, head.

    A block is x + conv(relu(norm(conv(a)))) with a = relu(norm(x)); where the channels change the
    shortcut is a 1x1 convolution of a, without a norm. No dropout.

    norm, state and inputs as in `resnet.resnet`.
    init(key): {"stem", "block_i": {"norm_0", "conv_0", "norm_1", "conv_1", "shortcut"},
        "final_norm", "head"}, see `convolution.classifier`.
    taps and add: "block_0" on, before the next activation, [B, H, W, width]; "pooled" [B, 64 k].
    """
    widths = [base * config.widen for base in (16, 32, 64)]
    convs, norms = {"stem": Conv(3, config.channels, 16)}, {"final_norm": widths[-1]}
    blocks: list[str] = []
    inputs = 16
    for stage, width in enumerate(widths):
        for i in range(config.blocks):
            name, stride = f"block_{len(blocks)}", 2 if stage > 0 and i == 0 else 1
            norms |= {f"{name}/norm_0": inputs, f"{name}/norm_1": width}
            convs[f"{name}/conv_0"] = Conv(3, inputs, width, stride)
            convs[f"{name}/conv_1"] = Conv(3, width, width)
            if inputs != width:
                convs[f"{name}/shortcut"] = Conv(1, inputs, width, stride)
            blocks.append(name)
            inputs = width

    def body(layers: Layers, x: jax.Array, place: Places) -> jax.Array:
        x = layers.conv("stem", x)
        for name in blocks:
            a = jax.nn.relu(layers.norm(f"{name}/norm_0", x))
            if f"{name}/shortcut" in convs:
                x = layers.conv(f"{name}/shortcut", a)
            y = jax.nn.relu(layers.norm(f"{name}/norm_1", layers.conv(f"{name}/conv_0", a)))
            x = x + layers.conv(f"{name}/conv_1", y)
            x = place(name, named(x, "batch", None, None, None))
        return jax.nn.relu(layers.norm("final_norm", x))

    outline = Outline(convs, norms, (widths[-1], config.classes))
    return classifier(outline, blocks, body, batch_norm() if norm is None else norm)
