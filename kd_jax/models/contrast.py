"""Sampling from several decoders at once: each token is drawn from a combination of their logits.

For models that are a difference (ULD, arXiv 2406.08607), or one with the differences of others
added (emulated fine-tuning, arXiv 2310.12962; dynamic logits fusion, arXiv 2406.15480): the
combination is the caller's, and no model's weights change.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, Int, Key

from kd_jax.models import decode, sampler
from kd_jax.models.config import DecoderConfig
from kd_jax.types import PyTree

Combine = Callable[..., Float[Array, "B V"]]  # of each model's logits, f32 [B, V]


def generate_difference(
    configs: tuple[DecoderConfig, ...],
    params: tuple[PyTree, ...],
    prompts: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    key: Key[Array, ""],
    *,
    combine: Combine,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[int] = (),
    numbers: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """As `sampler.generate`, from combine(logits of the first, of the second, ...), f32 [B, V].

    configs and params are those of the models, over one vocabulary; each keeps a cache of its own.
    `combine` goes row by row, and is static: hold on to one function object (a `functools.partial`
    made once), or every call compiles anew. The other settings act on the combined logits.
    """
    if len(configs) != len(params) or not configs:
        raise ValueError(
            f"params: got {len(params)}, takes those of each of configs, {len(configs)}, at least 1"
        )
    sizes = list(dict.fromkeys(config.vocab for config in configs))
    if len(sizes) > 1:
        said = " and ".join(map(str, sizes))
        raise ValueError(f"configs: got vocabularies of {said}, take one size")
    settings = sampler.checked(configs[0], prompts, lengths, max_new, temperature, top_k, top_p)
    ends = tuple(stop)
    return _generate(
        tuple(configs), combine, tuple(params), prompts, lengths, key, max_new, settings, ends,
        numbers,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7, 8))
def _generate(configs, combine, params, prompts, lengths, key, max_new, settings, stop, numbers):
    models = tuple(zip(configs, params, strict=True))

    def joined(parts):
        logits, caches = zip(*parts, strict=True)
        return combine(*logits), caches

    def prefill(prompts, lengths, *, slots):
        return joined(decode.prefill(*model, prompts, lengths, slots=slots) for model in models)

    def step(caches, tokens, positions):
        pairs = zip(models, caches, strict=True)
        return joined(decode.step(*model, cache, tokens, positions) for model, cache in pairs)

    return sampler.draw(prefill, step, prompts, lengths, key, max_new, settings, stop, numbers)
