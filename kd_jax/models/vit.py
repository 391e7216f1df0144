"""A vision transformer (arXiv 2010.11929) with the mean over patches in place of a class token."""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.models.attention import attention
from kd_jax.models.common import Places, layer_norm, linear, normals, to_float
from kd_jax.models.parts import fetched
from kd_jax.trees import nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree

RULES = (
    (r"embed/kernel", (None, "embed")),
    (r"position/embedding", (None, "embed")),
    (r"block_\d+/attn/[qkv]/kernel", ("embed", "heads")),
    (r"block_\d+/attn/[qkv]/bias", ("heads",)),
    (r"block_\d+/attn/o/kernel", ("heads", "embed")),
    (r"block_\d+/mlp/up/kernel", ("embed", "mlp")),
    (r"block_\d+/mlp/up/bias", ("mlp",)),
    (r"block_\d+/mlp/down/kernel", ("mlp", "embed")),
    (r"(embed|block_\d+/(attn/o|mlp/down))/bias", (None,)),
    (r"(block_\d+/(attn|mlp)|final)_norm/(scale|bias)", (None,)),
    (r"head/kernel", ("embed", "classes")),
    (r"head/bias", ("classes",)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are a tiny one for 32 x 32 images."""

    image: int = 32
    """Height and width of the images."""
    patch: int = 4
    """Height and width of a patch."""
    channels: int = 3
    """Channels of the images, C."""
    width: int = 192
    """Width of the residual stream, D."""
    depth: int = 6
    """Blocks."""
    heads: int = 3
    """Attention heads, H."""
    mlp: int = 768
    """Width inside the blocks' perceptrons."""
    classes: int = 10
    """Logits."""

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if self.image % self.patch:
            raise ValueError(f"patch: got {self.patch}, takes a divisor of image {self.image}")
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, takes a divisor of width {self.width}")

    @property
    def patches(self) -> int:
        """Patches of an image, N."""
        return (self.image // self.patch) ** 2


def vit(config: ViTConfig) -> Model:
    """Patches, learned positions, pre-norm blocks, final norm, mean over patches, linear head.

    A block is x + attn(norm(x)), then x + down(gelu(up(norm(x)))), GELU in its tanh form.

    init(key): {"embed", "position", "block_i": {"attn_norm", "attn": {q, k, v, o}, "mlp_norm",
        "mlp": {up, down}}, "final_norm", "head"}; kernels [in, out] normal of variance 1 / in,
        positions of standard deviation 0.02, biases 0.
    apply: inputs["inputs"] [B, H, W, C], u8 or floating. taps and add: "embed" and "block_0" on,
        [B, N, D], patches row by row, and "pooled" [B, D].
    """
    names = [f"block_{i}" for i in range(config.depth)]
    places = ("embed", *names, "pooled")

    def init(key: jax.Array) -> PyTree:
        d = config.width
        kernels = {"embed": (config.patch**2 * config.channels, d), "head": (d, config.classes)}
        norms = ["final_norm"]
        for name in names:
            kernels |= {f"{name}/attn/{part}": (d, d) for part in "qkvo"}
            kernels |= {f"{name}/mlp/up": (d, config.mlp), f"{name}/mlp/down": (config.mlp, d)}
            norms += [f"{name}/attn_norm", f"{name}/mlp_norm"]
        drawn = {f"{path}/kernel": (shape, shape[0] ** -0.5) for path, shape in kernels.items()}
        drawn["position/embedding"] = ((config.patches, d), 0.02)
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
        place = Places(places, taps, add)
        params = {name: x if name in names else fetched(x) for name, x in params.items()}
        x = linear(params["embed"], _patches(config, to_float(inputs["inputs"])))
        x = place("embed", _named(x + params["position"]["embedding"].astype(x.dtype)[None]))
        for name in names:
            x = place(name, _named(_block(config, fetched(params[name]), x)))
        x = place("pooled", layer_norm(params["final_norm"], x).mean(1))
        return ModelOutput(Logits(linear(params["head"], x)), place.found, state)

    return Model(init, apply)


def _patches(config: ViTConfig, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, N, patch * patch * C], patches and pixels row by row."""
    expected = (config.image, config.image, config.channels)
    if images.shape[1:] != expected:
        raise ValueError(f"inputs: got images {images.shape[1:]}, takes {expected}")
    side, p = config.image // config.patch, config.patch
    x = images.reshape(len(images), side, p, side, p, config.channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), side * side, -1)


def _block(config: ViTConfig, params: PyTree, x: jax.Array) -> jax.Array:
    y = layer_norm(params["attn_norm"], x)
    heads = (*x.shape[:2], config.heads, config.width // config.heads)
    q, k, v = (linear(params["attn"][part], y).reshape(heads) for part in "qkv")
    x = x + linear(params["attn"]["o"], attention(q, k, v, causal=False).reshape(x.shape))
    y = jax.nn.gelu(linear(params["mlp"]["up"], layer_norm(params["mlp_norm"], x)))
    return x + linear(params["mlp"]["down"], y)


def _named(x: jax.Array) -> jax.Array:
    # Patches are too few to be split.
    return named(x, "batch", None, None)
