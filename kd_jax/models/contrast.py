"""Sampling from two decoders at once: each token is drawn from a combination of their logits.

For models that are a difference (ULD, arXiv 2406.08607; task vectors of logits): the combination
is the caller's, and neither model's weights change.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, Int, Key

from kd_jax.models import decode, sampler
from kd_jax.models.config import DecoderConfig
from kd_jax.types import PyTree

Combine = Callable[[Float[Array, "B V"], Float[Array, "B V"]], Float[Array, "B V"]]


def generate_difference(
    configs: tuple[DecoderConfig, DecoderConfig],
    params: tuple[PyTree, PyTree],
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
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """As `sampler.generate`, from combine(logits of the first, logits of the second), f32 [B, V].

    configs and params are those of the two models, over one vocabulary; each keeps a cache of its
    own. `combine` is static: hold on to one function object (a `functools.partial` made once), or
    every call compiles anew. The other settings act on the combined logits.
    """
    if configs[0].vocab != configs[1].vocab:
        raise ValueError(
            f"configs: got vocabularies of {configs[0].vocab} and {configs[1].vocab}, take one size"
        )
    settings = sampler.checked(configs[0], prompts, lengths, max_new, temperature, top_k, top_p)
    ends = tuple(stop)
    return _generate(configs, combine, params, prompts, lengths, key, max_new, settings, ends)


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7, 8))
def _generate(configs, combine, params, prompts, lengths, key, max_new, settings, stop):
    models = tuple(zip(configs, params, strict=True))

    def joined(first, second):
        return combine(first[0], second[0]), (first[1], second[1])

    def prefill(prompts, lengths, *, slots):
        return joined(*(decode.prefill(*model, prompts, lengths, slots=slots) for model in models))

    def step(caches, tokens, positions):
        pairs = zip(models, caches, strict=True)
        return joined(*(decode.step(*model, cache, tokens, positions) for model, cache in pairs))

    return sampler.draw(prefill, step, prompts, lengths, key, max_new, settings, stop)
