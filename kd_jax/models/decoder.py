"""A decoder language model as plain functions over nested dicts.

Parameters (L layers stacked; unrolled layouts have "layers/0/..." without the leading L):
embed/embedding [V, D]; layers/attn_norm/scale [L, D]; layers/attn/{q,k,v,o}/kernel [L, in, out];
layers/attn/{q,k,v}/bias [L, out] with qkv_bias; layers/attn/{q_norm,k_norm}/scale [L, K] with
qk_norm; layers/mlp_norm/scale [L, D]; layers/mlp/{gate,up,down}/kernel [L, in, out], or
[L, E, in, out] beside layers/mlp/router/kernel [L, D, E] with experts;
final_norm/scale [D]; unembed/embedding [V, D] unless tied.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kd_jax.axes import mesh_axes, named, ways
from kd_jax.models import decoder_init, kernel_inputs, lora, moe, rope
from kd_jax.models.attention import attention
from kd_jax.models.config import DecoderConfig
from kd_jax.models.parts import fetched, matmul, rms_norm, swiglu
from kd_jax.types import Factored, Logits, Model, ModelOutput, PyTree

__all__ = ["RULES", "DecoderConfig", "decoder", "rules"]

# (pattern of a path, logical name of each axis) for the stacked layout with every option on.
RULES = (
    (r"(embed|unembed)/embedding", ("vocab", "embed")),
    (r"final_norm/scale", (None,)),
    (r"layers/(attn_norm|mlp_norm|attn/[qk]_norm)/scale", ("layers", None)),
    (r"layers/attn/q/kernel", ("layers", "embed", "heads")),
    (r"layers/attn/[kv]/kernel", ("layers", "embed", "kv_heads")),
    (r"layers/attn/q/bias", ("layers", "heads")),
    (r"layers/attn/[kv]/bias", ("layers", "kv_heads")),
    (r"layers/attn/o/kernel", ("layers", "heads", "embed")),
    (r"layers/mlp/(gate|up)/kernel", ("layers", "embed", "mlp")),
    (r"layers/mlp/down/kernel", ("layers", "mlp", "embed")),
)
_MIXED = ("query", "key", "value")


def rules(config: DecoderConfig) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """The part of RULES that this config has parameters for, in its layout.

    Every rule matches a parameter and every parameter a rule, as `trees.match_rules` asks.
    """
    kept = tuple(rule for rule in RULES if config.qkv_bias or not rule[0].endswith("/bias"))
    if config.experts:
        kept = tuple(rule for rule in kept if "layers/mlp/" not in rule[0]) + moe.RULES
    if config.scan:
        return kept
    return tuple(
        (pattern.replace("layers/", r"layers/\d+/", 1), axes[1:] if axes[0] == "layers" else axes)
        for pattern, axes in kept
    )


def decoder(config: DecoderConfig) -> Model:
    """The model of a config.

    init(key): kernels are normal of standard deviation 1 / sqrt(in), those of attn/o and mlp/down
        1 / sqrt(2 L in) so that the stream's variance does not grow with depth, embeddings 0.02,
        all cut at two standard deviations; norms are 1 and biases 0. A parameter depends on key
        and its path only.

    apply(params, inputs, *, state, key, train, taps, add): inputs["inputs"] i32 [B, T], optional
        "segments" i32 [B, T] (tokens see their own segment only; 0 is padding) and "positions"
        i32 [B, T] (for the rotation; by default 0 to T - 1, also in packed rows, since only
        differences within a segment matter). The head is `Factored`, or `Logits` with
        logits_head. Without segments right padding needs no mask: nothing before it sees it.
        There is no dropout and no state: key and train are not read. A token id outside the
        vocabulary gives NaN.
    taps and add name places: "embed" (after the embedding), "block_0" to "block_{L-1}" (the
        stream [B, T, D] after each layer) and "final" (after the last norm). add maps names to
        arrays that broadcast to [B, T, D] (with three axes) and are added there; a tap shows the
        value after the addition. Taps alone are "query_0" to "value_{L-1}" (with "key_"), what
        attention takes, [B, T, H, K] and [B, T, G, K]; "attn_input_0", "o_input_0", "mlp_input_0"
        and "down_input_0" on, what kernels multiply, [B, T, in] (`kernel_inputs.taps`); and with
        experts "router", f32 [L, B, T, E]: the routers' logits, which `moe.load_balance` takes
        layer by layer. ValueError for others.
    """

    def apply(
        params: PyTree,
        inputs: Mapping[str, jax.Array],
        *,
        state: PyTree = (),
        key: jax.Array | None = None,
        train: bool = False,
        taps: Collection[str] = (),
        add: Mapping[str, jax.Array] = {},
    ) -> ModelOutput:
        return _apply(config, params, inputs, state=state, taps=taps, add=add)

    return Model(functools.partial(decoder_init.init, config), apply)


def _apply(config, params, inputs, *, state, taps, add) -> ModelOutput:
    blocks = [f"block_{i}" for i in range(config.depth)]
    mixers = {f"{n}_{i}": (j, i) for j, n in enumerate(_MIXED) for i in range(config.depth)}
    read = {
        f"{n}_input_{i}": (n, i)
        for n in kernel_inputs.of_layer(config)
        for i in range(config.depth)
    }
    own = {*mixers, *read, *(["router"] if config.experts else [])}
    for argument, names in (("taps", set(taps) - own), ("add", set(add))):
        unknown = sorted(names - {"embed", *blocks, "final"})
        if unknown:
            raise ValueError(
                f"{argument}: got {', '.join(unknown)}, takes embed, block_0 to {blocks[-1]}, final"
            )
    tokens, segments = inputs["inputs"], inputs.get("segments")
    positions = inputs.get("positions")
    table = rotary_tables(config, default_positions(tokens) if positions is None else positions)

    perturbed = [name for name in blocks if name in add]
    wanted, mixing, reading = (any(x in group for x in taps) for group in (blocks, mixers, read))

    def attend(q, k, v):
        out = attention(q, k, v, window=config.window, q_segments=segments, kv_segments=segments)
        return out, (q, k, v) if mixing else ()

    def block(stream, i, layer):
        stream, mixed, routed, inputs = run_block(config, layer, stream, table, attend)
        for name in perturbed:
            here = i == blocks.index(name)
            stream += jnp.where(here, add[name], 0).astype(stream.dtype)
        return stream, mixed, routed, inputs if reading else ()

    if config.remat:
        # A scan's body is compiled on its own: nothing there for common-subexpression
        # elimination to merge, so the barrier against it would only cost speed.
        block = jax.checkpoint(
            block,
            policy=config.remat_policy,
            prevent_cse=not config.scan,
            static_argnums=() if config.scan else (1,),
        )

    def body(stream, i, layer):
        stream, mixed, routed, inputs = block(stream, i, layer)
        kept = stream if wanted else ()
        return stream, (kept, mixed, routed if "router" in taps else (), inputs)

    found = {}
    stream = embed(config, params, tokens)
    if "embed" in add:
        stream += add["embed"].astype(stream.dtype)
    found["embed"] = stream
    stream, outputs = over_layers(config, params["layers"], body, stream)
    streams, mixed, found["router"], inputs = outputs
    if wanted:
        found |= {name: streams[i] for i, name in enumerate(blocks)}
    if mixing:
        found |= {name: mixed[j][i] for name, (j, i) in mixers.items()}
    if reading:
        found |= {name: inputs[kernel][i] for name, (kernel, i) in read.items()}
    final = rms_norm(stream, fetched(params["final_norm"]["scale"]), config.norm_eps)
    if "final" in add:
        final += add["final"].astype(final.dtype)
    found["final"] = final
    factored = head(config, params, final)
    return ModelOutput(
        Logits(named(factored.logits(), "batch", "length", "vocab"))
        if config.logits_head
        else factored,
        {name: found[name] for name in taps},
        state,
    )


def over_layers(
    config: DecoderConfig, layers: PyTree, body: Callable[..., tuple[Any, Any]], carry: Any
) -> tuple[Any, Any]:
    """(carry, outputs [L, ...]) of carry, output = body(carry, i, layer) for each layer i.

    i is an array where layers are scanned and an int where they are unrolled.
    """
    if config.scan:
        numbered = (jnp.arange(config.depth), layers)
        return jax.lax.scan(lambda carry, x: body(carry, *x), carry, numbered)
    outputs = []
    for i in range(config.depth):
        carry, output = body(carry, i, layers[str(i)])
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def embed(config: DecoderConfig, params: PyTree, tokens: jax.Array) -> jax.Array:
    """The embeddings of tokens [B, T], in the compute dtype."""
    # Whole along D: looked up in a table split there, rows would be moved between layouts. In the
    # parameters' dtype, in which the gradients of a token's many places are then summed.
    table = named(lora.merge(fetched(params["embed"]["embedding"])), "vocab", None)
    rows = jnp.take(table, tokens, axis=0, mode="fill", fill_value=jnp.nan)
    return named(rows.astype(config.compute_dtype), "batch", "length", None)


def head(config: DecoderConfig, params: PyTree, final: jax.Array) -> Factored:
    """The vocabulary head over the normed stream [B, T, D]."""
    table = lora.merge(fetched(params["embed" if config.tied else "unembed"]["embedding"]))
    # Whole along D before the loss cuts T into pieces: gathered once, not once a piece.
    table = named(table.astype(config.compute_dtype), "vocab", None)
    return Factored(final, table, softcap=config.softcap)


def default_positions(tokens: jax.Array) -> jax.Array:
    """0 to T - 1 in each row."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


def rotary_tables(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The config's rotation at positions [B, T]."""
    frequencies = rope.frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    return rope.tables(positions, frequencies)


def run_block(
    config: DecoderConfig,
    layer: PyTree,
    stream: jax.Array,
    table: tuple[jax.Array, jax.Array],
    attend: Callable[..., tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any, Any, dict[str, jax.Array]]:
    """One layer: the stream [B, T, D] after it, and what it came by.

    That is: what attend gave besides, the router's logits or (), and the inputs of its kernels,
    {name: [B, T, in]} (`kernel_inputs.of_layer`).

    attend(q [B, T, H, K], k [B, T, G, K], v) -> (mixed values [B, T, H, K], anything), with q and
    k rotated: plain attention in training, a cache in decoding. Where T is split over devices, q
    stays split, and k and v are gathered along it (as in Llama 3, arXiv 2407.21783, section 3.3.2).
    """
    layer = fetched(layer)
    attn, mlp, eps = layer["attn"], layer["mlp"], config.norm_eps
    normed = rms_norm(stream, layer["attn_norm"]["scale"], eps)
    inputs = {"attn": normed}

    def project(name: str, axis: str) -> jax.Array:
        x = matmul(normed, attn[name]["kernel"])
        if config.qkv_bias:
            x += attn[name]["bias"].astype(x.dtype)[None, None, :]
        x = named(x, "batch", "length", axis)
        return x.reshape(*x.shape[:2], -1, config.head_dim)

    q, k, v = project("q", "heads"), project("k", "kv_heads"), project("v", "kv_heads")
    if config.qk_norm:
        q = rms_norm(q, attn["q_norm"]["scale"], eps)
        k = rms_norm(k, attn["k_norm"]["scale"], eps)
    turned = (rope.rotate(q, table), rope.rotate(k, table), v)
    q, k, v = (checkpoint_name(x, "qkv") for x in turned)
    if ways(mesh_axes("length")) > 1:
        k, v = (
            named(x.reshape(*x.shape[:2], -1), "batch", None, "kv_heads").reshape(x.shape)
            for x in (k, v)
        )
    mixed, extra = attend(q, k, v)
    mixed = named(mixed.reshape(*mixed.shape[:2], -1), "batch", "length", "heads")
    inputs["o"] = mixed
    stream += checkpoint_name(matmul(mixed, attn["o"]["kernel"]), "attention")

    normed, routed = rms_norm(stream, layer["mlp_norm"]["scale"], eps), ()
    inputs["mlp"] = normed
    if config.experts:
        added, routed = moe.moe_mlp(
            mlp, normed, per_token=config.experts_per_token, renormalise=config.renormalise
        )
    else:
        added, inputs["down"] = swiglu(mlp, normed)
    return named(stream + added, "batch", "length", None), extra, routed, inputs
