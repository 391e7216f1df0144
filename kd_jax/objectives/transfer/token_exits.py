"""Exits of transformer blocks on a student's tokens: one-for-all distillation (OFA)."""

import functools

import jax
import jax.numpy as jnp

from kd_jax.losses.logits import amplified_target
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import layer_norm, linear, make_linear, make_norm
from kd_jax.objectives.transfer.token_maps import folded
from kd_jax.types import Batch, ModelOutput, PyTree, Term, weighted_sum


def token_exits(
    student_taps: tuple[str, ...],
    blocks: tuple[int, ...],
    scale: float = 1.0,
    *,
    grid: int = 7,
    heads: int = 4,
    class_tokens: int = 0,
    power: float = 1.0,
    temperature: float = 1.0,
) -> Part:
    """scale * the sum over taps of `losses.logits.amplified_target` of an exit's logits: OFA.

    For students whose taps are tokens [B, N, D] (`heads.exits` is for maps). Patches are merged
    two by two in both directions, floor(log2(side / grid)) times and never if the side is not above
    the grid: four patches one after another, layer norm, a linear map back to D without bias, GELU,
    which the last of several mergers has not. Then as many `blocks` of a transformer over all
    tokens, with `heads` heads, perceptrons of 4 D and exact GELU; the class token, or the mean over
    patches where there is none; and a linear head. Nothing couples examples.
    class_tokens: 0 or 1, first in the tap. The released code merges to the width of the student's
    last stage, which in a ViT and an MLP-Mixer is D.
    Hao et al. 2023, arXiv 2310.19444, by released code: stages 1 to 4 have 3, 2, 1 and 1 blocks.
    """
    if len(blocks) != len(student_taps):
        raise ValueError(f"blocks: got {blocks}, takes one number a tap of {student_taps}")
    if class_tokens not in (0, 1):
        raise ValueError(f"class_tokens: got {class_tokens}, takes 0 or 1")

    patches = functools.partial(folded, class_tokens=class_tokens)

    def mergers(side: int) -> int:
        times = 0
        while side >> (times + 1) >= grid:
            times += 1
        if side % 2**times:
            raise ValueError(f"grid: got {grid}, takes one to which {side} patches can be halved")
        return times

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        classes = jax.eval_shape(lambda o: o.head.logits(), teacher).shape[-1]

        def one(key, tap: str, count: int) -> PyTree:
            tokens = student.taps[tap]
            width = tokens.shape[-1]
            if width % heads:
                raise ValueError(f"heads: got {heads}, takes a divisor of width {width}")
            keys = jax.random.split(key, 3)
            merges = {
                f"merge_{i}": {
                    "norm": make_norm(4 * width),
                    "linear": make_linear(
                        jax.random.fold_in(keys[0], i), 4 * width, width, bias=False
                    ),
                }
                for i in range(mergers(jax.eval_shape(patches, tokens).shape[1]))
            }
            made = {
                f"block_{i}": _make_block(jax.random.fold_in(keys[1], i), width)
                for i in range(count)
            }
            return merges | made | {"head": make_linear(keys[2], width, classes)}

        return {
            f"exit_{i}": one(jax.random.fold_in(key, i), tap, count)
            for i, (tap, count) in enumerate(zip(student_taps, blocks, strict=True))
        }

    def logits(weights: PyTree, tokens: jax.Array, count: int) -> jax.Array:
        tokens = tokens.astype(jnp.float32)
        x = patches(tokens)
        times = mergers(x.shape[1])
        for i in range(times):
            x = _merged(weights[f"merge_{i}"], x)
            x = x if 0 < i == times - 1 else jax.nn.gelu(x, approximate=False)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([tokens[:, :class_tokens], x], 1)
        for i in range(count):
            x = _block(weights[f"block_{i}"], x, heads)
        return linear(weights["head"], x[:, 0] if class_tokens else x.mean(1))

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        target, total = teacher.head.logits(), jnp.zeros(len(batch["weights"]))
        for i, (tap, count) in enumerate(zip(student_taps, blocks, strict=True)):
            z = logits(aux[f"exit_{i}"], student.taps[tap], count)
            total += amplified_target(
                z, target, batch["targets"], power=power, temperature=temperature
            )
        return weighted_sum(total, batch["weights"], scale)

    return Part(part, init, student_taps)


def _merged(weights: PyTree, x: jax.Array) -> jax.Array:
    """[B, S, S, D] -> [B, S / 2, S / 2, D]."""
    four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return linear(weights["linear"], layer_norm(weights["norm"], jnp.concatenate(four, -1)))


def _make_block(key: jax.Array, width: int) -> PyTree:
    keys = jax.random.split(key, 4)
    return {
        "attn_norm": make_norm(width),
        "qkv": make_linear(keys[0], width, 3 * width, bias=False),
        "out": make_linear(keys[1], width, width),
        "mlp_norm": make_norm(width),
        "up": make_linear(keys[2], width, 4 * width),
        "down": make_linear(keys[3], 4 * width, width),
    }


def _block(weights: PyTree, x: jax.Array, heads: int) -> jax.Array:
    size = (*x.shape[:2], heads, x.shape[-1] // heads)
    qkv = jnp.split(linear(weights["qkv"], layer_norm(weights["attn_norm"], x)), 3, -1)
    mixed = jax.nn.dot_product_attention(*(y.reshape(size) for y in qkv))
    x = x + linear(weights["out"], mixed.reshape(x.shape))
    y = linear(weights["up"], layer_norm(weights["mlp_norm"], x))
    return x + linear(weights["down"], jax.nn.gelu(y, approximate=False))
