"""MLP-Mixer (Tolstikhin et al., arXiv 2105.01601): perceptrons over patches and over channels."""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.models.common import Places, layer_norm, linear, normals, to_float
from kd_jax.models.parts import fetched
from kd_jax.trees import nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree

RULES = (
    (r"embed/kernel", (None, "embed")),
    (r"block_\d+/patches/up/kernel", (None, "mlp")),
    (r"block_\d+/patches/down/kernel", ("mlp", None)),
    (r"block_\d+/channels/up/kernel", ("embed", "mlp")),
    (r"block_\d+/channels/down/kernel", ("mlp", "embed")),
    (r"block_\d+/(patches|channels)/up/bias", ("mlp",)),
    (r"(embed|block_\d+/(patches|channels)/down)/bias", (None,)),
    (r"(block_\d+/(patches|channels)|final)_norm/(scale|bias)", (None,)),
    (r"head/kernel", ("embed", "classes")),
    (r"head/bias", ("classes",)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Sizes of an MLP-Mixer; the defaults are a tiny one for 32 x 32 images."""

    image: int = 32
    """Height and width of the images."""
    patch: int = 4
    """Height and width of a patch."""
    channels: int = 3
    """Channels of the images, C."""
    width: int = 128
    """Width of the residual stream, D."""
    depth: int = 6
    """Blocks."""
    patch_mlp: int = 64
    """Width inside the perceptrons over patches, D_S."""
    channel_mlp: int = 512
    """Width inside the perceptrons over channels, D_C."""
    classes: int = 10
    """Logits."""

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if self.image % self.patch:
            raise ValueError(f"patch: got {self.patch}, takes a divisor of image {self.image}")

    @property
    def patches(self) -> int:
        """Patches of an image, N."""
        return (self.image // self.patch) ** 2


def mixer(config: MixerConfig) -> Model:
    """Patches, blocks of two perceptrons, final norm, mean over patches, linear head.

    A block is x + mlp(norm(x)^T)^T over the patches, then x + mlp(norm(x)) over the channels, with
    mlp(y) = down(gelu(up(y))), GELU in its tanh form, the paper's in its exact one.

    init(key): {"embed", "block_i": {"patches_norm", "patches": {up, down}, "channels_norm",
        "channels": {up, down}}, "final_norm", "head"}; kernels [in, out] normal of variance
        1 / in, biases 0.
    apply: inputs["inputs"] [B, H, W, C], u8 or floating. taps and add: "embed" and "block_0" on,
        [B, N, D], patches row by row, and "pooled" [B, D].
    """
    names = [f"block_{i}" for i in range(config.depth)]

    def init(key: jax.Array) -> PyTree:
        d = config.width
        kernels = {"embed": (config.patch**2 * config.channels, d), "head": (d, config.classes)}
        norms = ["final_norm"]
        for name in names:
            for part, size, hidden in (
                ("patches", config.patches, config.patch_mlp),
                ("channels", d, config.channel_mlp),
            ):
                kernels[f"{name}/{part}/up"] = (size, hidden)
                kernels[f"{name}/{part}/down"] = (hidden, size)
                norms.append(f"{name}/{part}_norm")
        drawn = {f"{path}/kernel": (shape, shape[0] ** -0.5) for path, shape in kernels.items()}
        vectors = {f"{path}/bias": jnp.zeros(shape[1]) for path, shape in kernels.items()}
        for path in norms:
            vectors |= {f"{path}/scale": jnp.ones(d), f"{path}/bias": jnp.zeros(d)}
        return nest(normals(key, drawn) | vectors)

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
        place = Places(("embed", *names, "pooled"), taps, add)
        params = {name: x if name in names else fetched(x) for name, x in params.items()}
        x = linear(params["embed"], _patches(config, to_float(inputs["inputs"])))
        x = place("embed", named(x, "batch", None, None))
        for name in names:
            block = fetched(params[name])
            y = jnp.swapaxes(layer_norm(block["patches_norm"], x), 1, 2)
            x = x + jnp.swapaxes(_perceptron(block["patches"], y), 1, 2)
            x = x + _perceptron(block["channels"], layer_norm(block["channels_norm"], x))
            x = place(name, named(x, "batch", None, None))
        x = place("pooled", layer_norm(params["final_norm"], x).mean(1))
        return ModelOutput(Logits(linear(params["head"], x)), place.found, state)

    return Model(init, apply)


def _perceptron(params: PyTree, x: jax.Array) -> jax.Array:
    return linear(params["down"], jax.nn.gelu(linear(params["up"], x)))


def _patches(config: MixerConfig, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, N, patch * patch * C], patches and pixels row by row."""
    expected = (config.image, config.image, config.channels)
    if images.shape[1:] != expected:
        raise ValueError(f"inputs: got images {images.shape[1:]}, takes {expected}")
    side, p = config.image // config.patch, config.patch
    x = images.reshape(len(images), side, p, side, p, config.channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), side * side, -1)
