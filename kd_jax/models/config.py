"""The shape of a decoder language model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.rope import Scaling

FLOATS = ("float32", "bfloat16", "float16")
# What a layer can keep for the backward pass. The MLP's output is not among them: the backward
# pass never reads it.
KEPT = ("qkv", "mixed", "attention", "gate_up")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Covers Llama 2 and 3, SmolLM2, Mistral, Qwen2.5 and Qwen3; with experts in the place of the MLP
    also the layers of Mixtral and Qwen3-MoE, whose files are not read. Hashable, so that it can be
    a static argument of `jax.jit`.
    """

    vocab: int
    """Entries of the vocabulary, V."""
    width: int
    """Width of the residual stream, D."""
    depth: int
    """Number of layers, L."""
    heads: int
    """Query heads, H."""
    kv_heads: int
    """Key and value heads, G; divides heads."""
    head_dim: int
    """Width of a head, K; even. heads * head_dim need not be width (Qwen3)."""
    mlp: int
    """Width of the gated hidden layer, F; of each expert's."""
    experts: int = 0
    """Experts of each layer, E (`models.moe`); 0: one MLP for all tokens."""
    experts_per_token: int = 2
    """How many of them a token goes through, k."""
    renormalise: bool = True
    """The weights of a token's experts sum to 1 (Mixtral, Qwen3 with norm_topk_prob)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: Scaling | None = None
    """`rope.LinearScaling`, `rope.Llama3Scaling` or None."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tied: bool = False
    """The unembedding is the embedding."""
    qkv_bias: bool = False
    """Biases on the q, k and v projections (Qwen2.5)."""
    qk_norm: bool = False
    """RMSNorm of each query and key head before the rotation (Qwen3)."""
    window: int | None = None
    """A token sees itself and the window - 1 tokens before it; None: all before it."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""
    dtype: str = "float32"
    """Of activations and matrix products; norms, softmax and rotations are float32."""
    param_dtype: str = "float32"
    """Of the parameters that init makes."""
    scan: bool = True
    """Layers stacked on a leading axis and scanned, or one subtree a layer, unrolled."""
    remat: bool = True
    """Recompute each layer in the backward pass rather than keep its activations."""
    remat_save: tuple[str, ...] = ()
    """What a layer keeps all the same, besides its input: "qkv" (queries, keys and values as the
    attention takes them), "mixed" (what it gives, before the output product), "attention" (after
    that product), "gate_up" (the two wide products of the MLP)."""
    remat_offload: tuple[str, ...] = ()
    """Names of the same kind: kept in the host's memory, and fetched in the backward pass."""
    logits_head: bool = False
    """The head is `Logits` [B, T, V] rather than `Factored`."""

    def __post_init__(self):
        for name in ("vocab", "width", "depth", "heads", "kv_heads", "head_dim", "mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes at least 1")
        for name in ("rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes a positive number")
        for name in ("window", "softcap"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes a positive number")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in FLOATS:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, takes one of {FLOATS}")
        if self.experts < 0:
            raise ValueError(f"experts: got {self.experts}, takes at least 0")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"experts_per_token: got {self.experts_per_token}, takes 1 to {self.experts}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: got {self.kv_heads}, takes a divisor of {self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, takes an even number")
        for name in ("remat_save", "remat_offload"):
            given = getattr(self, name)
            unknown = [x for x in given if x not in KEPT]
            if unknown:
                raise ValueError(f"{name}: got {', '.join(unknown)}, takes {', '.join(KEPT)}")
            if given and not self.remat:
                raise ValueError(f"{name}: got {', '.join(given)} without remat, takes () there")
        both = sorted(set(self.remat_save) & set(self.remat_offload))
        if both:
            raise ValueError(
                f"remat_offload: got {', '.join(both)}, takes what remat_save does not have"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    @property
    def remat_policy(self) -> Callable[..., Any] | None:
        """What jax.checkpoint keeps of a layer besides its input."""
        policies, save, offload = jax.checkpoint_policies, self.remat_save, self.remat_offload
        if offload:
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=save,
                names_which_can_be_offloaded=offload,
                offload_src="device",
                offload_dst="pinned_host",
            )
        return policies.save_only_these_names(*save) if save else None
