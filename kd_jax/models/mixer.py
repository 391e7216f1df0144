"""MLP-Mixer (Tolstikhin et al., arXiv 2105.01601): perceptrons over patches and over channels."""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.models.common import Places, layer_norm, linear, to_float
from kd_jax.models.parts import fetched
from kd_jax.models.patches import PatchConfig, cut, dense
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
class MixerConfig(PatchConfig):
    """Sizes of an MLP-Mixer; the defaults are a tiny one for 32 x 32 images."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMixerConfig(MixerConfig):
    """As the paper and published weights have it: GELU in its exact form, not its tanh form."""

    exact_gelu: bool = True
    """Whether that is so."""


def mixer(config: MixerConfig) -> Model:
    """Patches, blocks of two perceptrons, final norm, mean over patches, linear head.

    A block is x + mlp(norm(x)^T)^T over the patches, then x + mlp(norm(x)) over the channels, with
    mlp(y) = down(gelu(up(y))).

    init(key): {"embed", "block_i": {"patches_norm", "patches": {up, down}, "channels_norm",
        "channels": {up, down}}, "final_norm", "head"}; kernels [in, out] normal of variance
        1 / in, biases 0.
    apply: inputs["inputs"] [B, H, W, C], u8 or floating. taps and add: "embed" and "block_0" on,
        [B, N, D], patches row by row, and "pooled" [B, D].
    """
    names = [f"block_{i}" for i in range(config.depth)]

    def init(key: jax.Array) -> PyTree:
        d = config.width
        kernels = {"embed": (config.pixels, d), "head": (d, config.classes)}
        norms = ["final_norm"]
        for name in names:
            for part, size, hidden in (
                ("patches", config.patches, config.patch_mlp),
                ("channels", d, config.channel_mlp),
            ):
                kernels[f"{name}/{part}/up"] = (size, hidden)
                kernels[f"{name}/{part}/down"] = (hidden, size)
                norms.append(f"{name}/{part}_norm")
        return nest(dense(key, kernels, norms, d))

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
        x = linear(params["embed"], cut(config, to_float(inputs["inputs"])))
        x = place("embed", named(x, "batch", None, None))
        for name in names:
            block = fetched(params[name])
            y = jnp.swapaxes(layer_norm(block["patches_norm"], x), 1, 2)
            x = x + jnp.swapaxes(_perceptron(config, block["patches"], y), 1, 2)
            x = x + _perceptron(config, block["channels"], layer_norm(block["channels_norm"], x))
            x = place(name, named(x, "batch", None, None))
        x = place("pooled", layer_norm(params["final_norm"], x).mean(1))
        return ModelOutput(Logits(linear(params["head"], x)), place.found, state)

    return Model(init, apply)


def _perceptron(config: MixerConfig, params: PyTree, x: jax.Array) -> jax.Array:
    return linear(params["down"], config.gelu(linear(params["up"], x)))
