"""ResNets for small images (He et al., arXiv 1512.03385, section 4.2), batch or group norm."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.models.common import Places, along_last, linear, normals, to_float
from kd_jax.models.lora import merge
from kd_jax.models.parts import fetched
from kd_jax.trees import check_same, nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree

RULES = (
    (r"(stem|block_\d+/(conv_[01]|shortcut))/kernel", (None, None, None, "embed")),
    (r"(.*/)?(stem_norm|norm_[01]|shortcut_norm)/(scale|bias)", (None,)),
    (r"head/kernel", ("embed", "classes")),
    (r"head/bias", ("classes",)),
)


class Norm(NamedTuple):
    """A normalisation of channels, before its scale and bias.

    state(channels) -> what it carries from batch to batch, {name: [C]}; {} for none.
    apply(x [B, H, W, C] f32, state, train) -> (normalised x, new state).
    """

    state: Callable[[int], dict[str, jax.Array]]
    apply: Callable[
        [jax.Array, Mapping[str, jax.Array], bool], tuple[jax.Array, Mapping[str, jax.Array]]
    ]


def batch_norm(momentum: float = 0.9, eps: float = 1e-5) -> Norm:
    """Batch normalisation (arXiv 1502.03167): (x - mean) / sqrt(var + eps) for each channel.

    train=True: mean and (biased) variance of the whole batch, over all devices that hold a part of
    it; new state = momentum * old + (1 - momentum) * batch. train=False: those of the state, left
    as they are. Every row of the batch counts, rows of weight 0 too: train on batches without
    padding. Microbatches are normalised each for itself.
    """

    def state(channels: int) -> dict[str, jax.Array]:
        return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}

    def apply(x: jax.Array, held: Mapping[str, jax.Array], train: bool):
        if not train:
            return _standard(x, held["mean"], held["var"], eps), held
        mean = x.mean((0, 1, 2))
        var = jnp.mean(jnp.square(x - along_last(mean, x)), (0, 1, 2))
        batch = {"mean": mean, "var": var}
        new = {k: momentum * held[k] + (1.0 - momentum) * batch[k] for k in batch}
        return _standard(x, mean, var, eps), jax.lax.stop_gradient(new)

    return Norm(state, apply)


def group_norm(groups: int = 8, eps: float = 1e-5) -> Norm:
    """Group normalisation (arXiv 1803.08494): each example by itself, no state.

    Mean and variance over the height, width and channels of each of `groups` groups of adjacent
    channels; ValueError unless they divide the channels.
    """

    def apply(x: jax.Array, held: Mapping[str, jax.Array], train: bool):
        b, h, w, c = x.shape
        if c % groups:
            raise ValueError(f"groups: got {groups}, takes a divisor of the {c} channels")
        grouped = x.reshape(b, h * w, groups, c // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), (1, 3), keepdims=True)
        return ((grouped - mean) * jax.lax.rsqrt(var + eps)).reshape(x.shape), held

    return Norm(lambda channels: {}, apply)


def _standard(x: jax.Array, mean: jax.Array, var: jax.Array, eps: float) -> jax.Array:
    return (x - along_last(mean, x)) * along_last(jax.lax.rsqrt(var + eps), x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of a residual network; the defaults are ResNet-20."""

    blocks: tuple[int, ...] = (3, 3, 3)
    """Blocks of two convolutions in each stage; a stage after the first halves the image."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage."""
    stem: int | None = None
    """Channels behind the first convolution; None: those of the first stage."""
    channels: int = 3
    """Channels of the images, C."""
    classes: int = 10
    """Logits."""

    def __post_init__(self):
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(f"blocks, widths: got {self}, takes as many of one as of the other")
        sizes = (self.first, self.channels, self.classes)
        if min(*self.blocks, *self.widths, *sizes) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")

    @property
    def first(self) -> int:
        """Channels behind the first convolution."""
        return self.widths[0] if self.stem is None else self.stem


class _Block(NamedTuple):
    name: str
    inputs: int
    width: int
    stride: int

    @property
    def projects(self) -> bool:
        return self.stride != 1 or self.inputs != self.width


def _blocks(config: ResNetConfig) -> list[_Block]:
    blocks: list[_Block] = []
    inputs = config.first
    for stage, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(_Block(f"block_{len(blocks)}", inputs, width, stride))
            inputs = width
    return blocks


def resnet(config: ResNetConfig, *, norm: Norm | None = None) -> Model:
    """A 3x3 stem, stages of basic blocks, the mean over the image, a linear head.

    A block is relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))); the shortcut is a 1x1
    convolution with a norm where the shape changes (option B of the paper), else the identity.

    norm: `batch_norm()` by default, or `group_norm()`. With batch norm, apply takes the statistics
    as `state` (at first `model.state()`) and gives the new ones when train is true.
    init(key): {"stem": {"kernel"}, "stem_norm", "block_i": {"conv_0", "norm_0", ...}, "head"};
        kernels [k, k, in, out] normal of variance 2 / (k k in) (arXiv 1502.01852).
    apply: inputs["inputs"] [B, H, W, C], u8 or floating. taps and add: "block_0" on, the blocks'
        outputs [B, H, W, width], and "pooled" [B, width].
    """
    norm = batch_norm() if norm is None else norm
    blocks = _blocks(config)
    places = (*(block.name for block in blocks), "pooled")

    def sizes() -> dict[str, tuple[int, int, int, int]]:
        """The shape of every convolution, by path; its norm's path goes with it."""
        shapes = {"stem": (3, 3, config.channels, config.first)}
        for block in blocks:
            shapes[f"{block.name}/conv_0"] = (3, 3, block.inputs, block.width)
            shapes[f"{block.name}/conv_1"] = (3, 3, block.width, block.width)
            if block.projects:
                shapes[f"{block.name}/shortcut"] = (1, 1, block.inputs, block.width)
        return shapes

    def init(key: jax.Array) -> PyTree:
        width = config.widths[-1]
        kernels: dict[str, tuple[tuple[int, ...], float]] = {
            "head/kernel": ((width, config.classes), width**-0.5)
        }
        vectors = {"head/bias": jnp.zeros(config.classes)}
        for path, shape in sizes().items():
            std = (2.0 / (shape[0] * shape[1] * shape[2])) ** 0.5
            kernels[f"{path}/kernel"] = (shape, std)
            vectors[f"{_norm_of(path)}/scale"] = jnp.ones(shape[-1])
            vectors[f"{_norm_of(path)}/bias"] = jnp.zeros(shape[-1])
        return nest(normals(key, kernels) | vectors)

    def initial_state() -> PyTree:
        return nest(
            {
                f"{_norm_of(path)}/{name}": value
                for path, shape in sizes().items()
                for name, value in norm.state(shape[-1]).items()
            }
        )

    def apply(
        params: PyTree,
        inputs: Mapping[str, jax.Array],
        *,
        state: PyTree = {},
        key: jax.Array | None = None,
        train: bool = False,
        taps: Collection[str] = (),
        add: Mapping[str, jax.Array] = {},
    ) -> ModelOutput:
        params = fetched(params)
        x = named(to_float(inputs["inputs"]), "batch", None, None, None)
        check_same("state", state, "model.state()", jax.eval_shape(initial_state))
        place = Places(places, taps, add)
        moved: dict[str, jax.Array] = {}

        def convolve(path: str, x: jax.Array, stride: int = 1) -> jax.Array:
            """The convolution at the path and its norm."""
            x = _convolution(merge(_at(params, path)["kernel"]), x, stride)
            held = _at(state, _norm_of(path)) if state else {}
            x, new = norm.apply(x, held, train)
            moved.update({f"{_norm_of(path)}/{name}": value for name, value in new.items()})
            own = _at(params, _norm_of(path))
            return x * along_last(own["scale"], x) + along_last(own["bias"], x)

        x = jax.nn.relu(convolve("stem", x))
        for block in blocks:
            y = jax.nn.relu(convolve(f"{block.name}/conv_0", x, block.stride))
            y = convolve(f"{block.name}/conv_1", y)
            if block.projects:
                x = convolve(f"{block.name}/shortcut", x, block.stride)
            x = place(block.name, named(jax.nn.relu(x + y), "batch", None, None, None))
        x = place("pooled", x.mean((1, 2)))
        return ModelOutput(Logits(linear(params["head"], x)), place.found, nest(moved))

    return Model(init, apply, initial_state)


def _norm_of(path: str) -> str:
    """The path of the norm that follows a convolution."""
    return path.replace("conv_", "norm_") if "conv_" in path else f"{path}_norm"


def _at(tree: PyTree, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _convolution(kernel: jax.Array, x: jax.Array, stride: int) -> jax.Array:
    """Padded alike on both sides, so that weights of other frameworks fit ("SAME" would not)."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
