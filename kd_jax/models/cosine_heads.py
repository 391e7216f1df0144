"""Cosine classifiers on a model's features: of known classes, and heads that cluster new ones.

Gu et al. 2023 (class-relation distillation for discovery), arXiv 2307.09158, by released code.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.common import layer_norm, linear, normals
from kd_jax.trees import nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineHeadsConfig:
    """Sizes of the heads; without heads it is the model of the known classes alone."""

    width: int
    """Width of the features, D."""
    known: int
    """Known classes, K."""
    novel: int = 0
    """New classes, U."""
    heads: int = 0
    """Clustering heads, H, each with a projector of its own."""
    hidden: int = 2048
    """Width of a projector's hidden layer."""
    projection: int = 256
    """Width that a projector ends in."""
    temperature: float = 0.1
    """What the cosines are divided by in the logits, tau."""

    def __post_init__(self):
        if min(self.width, self.known, self.hidden, self.projection) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if (self.novel > 0) != (self.heads > 0) or min(self.novel, self.heads) < 0:
            raise ValueError(
                f"novel, heads: got {self.novel} and {self.heads}, takes at least 1 of both or none"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature: got {self.temperature}, takes a number above 0")


def cosine_heads(encoder: Model, tap: str, config: CosineHeadsConfig) -> Model:
    """The encoder with cosine classifiers on its tap [B, D]; its own head stays unused.

    init(key): {"encoder", "known": {"prototypes" [D, K]}, "head_h": {"up", "norm", "down",
        "prototypes" [P, U]}}. Weights of a model without heads are those of one with them, less the
        heads: {**model.init(key), **pretrained}.
    apply: taps "known" f32 [B, K] and "novel" f32 [B, H, U] are the cosines, beside the encoder's.
        Logits are the cosines over the temperature: [B, K], or [B, K + U] of the first head. The
        best head is another one where its loss says so (`transfer.discovery`).
    A projector is linear, normalised by the layer, ReLU, linear; the released one is normalised by
    the batch. Prototypes are normalised where they are read, there before each step.
    """
    names = [f"head_{h}" for h in range(config.heads)]

    def init(key: jax.Array) -> PyTree:
        below, ours = jax.random.split(key)
        kernels = {"known/prototypes": (config.width, config.known)}
        vectors = {}
        for name in names:
            kernels[f"{name}/up/kernel"] = (config.width, config.hidden)
            kernels[f"{name}/down/kernel"] = (config.hidden, config.projection)
            kernels[f"{name}/prototypes"] = (config.projection, config.novel)
            vectors |= {f"{name}/{at}/bias": jnp.zeros(config.hidden) for at in ("up", "norm")}
            vectors |= {
                f"{name}/norm/scale": jnp.ones(config.hidden),
                f"{name}/down/bias": jnp.zeros(config.projection),
            }
        drawn = {path: (shape, shape[0] ** -0.5) for path, shape in kernels.items()}
        return {"encoder": encoder.init(below)} | nest(normals(ours, drawn) | vectors)

    def cosines(prototypes: jax.Array, x: jax.Array) -> jax.Array:
        return _unit(x, -1) @ _unit(prototypes, 0)

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
        asked = tuple(t for t in taps if t not in ("known", "novel"))
        output = encoder.apply(
            params["encoder"],
            inputs,
            state=state,
            key=key,
            train=train,
            taps=tuple(dict.fromkeys((*asked, tap))),
            add=add,
        )
        x = output.taps[tap].astype(jnp.float32)
        own = {"known": cosines(params["known"]["prototypes"], x)}
        if names:
            heads = [params[name] for name in names]
            novel = [cosines(head["prototypes"], _projected(head, x)) for head in heads]
            own["novel"] = jnp.stack(novel, 1)
        elif "novel" in taps:
            raise ValueError("taps: got novel, which a model without heads does not have")
        z = jnp.concatenate([own["known"], own["novel"][:, 0]], -1) if names else own["known"]
        found = {t: own[t] if t in own else output.taps[t] for t in taps}
        return ModelOutput(Logits(z / config.temperature), found, output.state)

    return Model(init, apply, encoder.state)


def rules(
    encoder: Sequence[tuple[str, Any]], config: CosineHeadsConfig
) -> tuple[tuple[str, Any], ...]:
    """The encoder's rules for where its weights lie, and that the heads lie everywhere."""
    below = tuple((f"encoder/(?:{pattern})", names) for pattern, names in encoder)
    of_heads = (
        (r"head_\d+/((up|down)/kernel|prototypes)", (None, None)),
        (r"head_\d+/(up|norm|down)/(bias|scale)", (None,)),
    )
    known = ("known/prototypes", (None, None))
    return (*below, known, *(of_heads if config.heads else ()))


def _projected(weights: PyTree, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(layer_norm(weights["norm"], linear(weights["up"], x)))
    return linear(weights["down"], x)


def _unit(x: jax.Array, axis: int) -> jax.Array:
    """x over its length along the axis; zeros stay zeros, without a gradient."""
    square = jnp.square(x).sum(axis, keepdims=True)
    there = square > 1e-24
    return jnp.where(there, x * jax.lax.rsqrt(jnp.where(there, square, 1.0)), 0.0)
