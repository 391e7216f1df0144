"""A vision transformer (arXiv 2010.11929), by the mean over patches or with a class token."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.models.attention import attention
from kd_jax.models.common import Places, layer_norm, linear, normals, to_float
from kd_jax.models.parts import fetched
from kd_jax.models.patches import PatchConfig, cut, dense
from kd_jax.trees import nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree

RULES = (
    (r"embed/kernel", (None, "embed")),
    (r"(position|class_token)/embedding", (None, "embed")),
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
class ViTConfig(PatchConfig):
    """Sizes of a vision transformer; the defaults are a tiny one for 32 x 32 images."""

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

    # Whether the head reads a learned token or the mean over patches; a field of subclasses.
    class_token: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, takes a divisor of width {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTokenViTConfig(ViTConfig):
    """As the paper and published weights have it: a class token, and GELU in its exact form."""

    class_token: bool = True
    """Whether the head reads a learned token before the patches, or the mean over patches."""
    exact_gelu: bool = True
    """Whether GELU is x Phi(x), or has its tanh form."""


def vit(config: ViTConfig) -> Model:
    """Patches, learned positions, pre-norm blocks, final norm, mean or class token, linear head.

    A block is x + attn(norm(x)), then x + down(gelu(up(norm(x)))).

    init(key): {"embed", "position", "block_i": {"attn_norm", "attn": {q, k, v, o}, "mlp_norm",
        "mlp": {up, down}}, "final_norm", "head"} and "class_token" where there is one; kernels
        [in, out] normal of variance 1 / in, positions and token of standard deviation 0.02,
        biases 0.
    apply: inputs["inputs"] [B, H, W, C], u8 or floating. taps and add: "embed" and "block_0" on,
        [B, N, D], patches row by row, before them the class token (N + 1), and "pooled" [B, D].
    """
    names = [f"block_{i}" for i in range(config.depth)]
    places = ("embed", *names, "pooled")

    def init(key: jax.Array) -> PyTree:
        d = config.width
        kernels = {"embed": (config.pixels, d), "head": (d, config.classes)}
        norms = ["final_norm"]
        for name in names:
            kernels |= {f"{name}/attn/{part}": (d, d) for part in "qkvo"}
            kernels |= {f"{name}/mlp/up": (d, config.mlp), f"{name}/mlp/down": (config.mlp, d)}
            norms += [f"{name}/attn_norm", f"{name}/mlp_norm"]
        tokens = {"position/embedding": ((config.patches + config.class_token, d), 0.02)}
        if config.class_token:
            tokens["class_token/embedding"] = ((1, d), 0.02)
        return nest(dense(key, kernels, norms, d) | normals(key, tokens))

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
        x = linear(params["embed"], cut(config, to_float(inputs["inputs"])))
        if config.class_token:
            token = params["class_token"]["embedding"].astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), *token.shape)), x], axis=1)
        x = place("embed", _named(x + params["position"]["embedding"].astype(x.dtype)[None]))
        for name in names:
            x = place(name, _named(_block(config, fetched(params[name]), x)))
        x = layer_norm(params["final_norm"], x)
        x = place("pooled", x[:, 0] if config.class_token else x.mean(1))
        return ModelOutput(Logits(linear(params["head"], x)), place.found, state)

    return Model(init, apply)


def _block(config: ViTConfig, params: PyTree, x: jax.Array) -> jax.Array:
    y = layer_norm(params["attn_norm"], x)
    heads = (*x.shape[:2], config.heads, config.width // config.heads)
    q, k, v = (linear(params["attn"][part], y).reshape(heads) for part in "qkv")
    x = x + linear(params["attn"]["o"], attention(q, k, v, causal=False).reshape(x.shape))
    y = config.gelu(linear(params["mlp"]["up"], layer_norm(params["mlp_norm"], x)))
    return x + linear(params["mlp"]["down"], y)


def _named(x: jax.Array) -> jax.Array:
    # Patches are too few to be split.
    return named(x, "batch", None, None)
