"""Batched sampling from a decoder, compiled once for each set of shapes and settings."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from kd_jax.models import decode
from kd_jax.models.config import DecoderConfig
from kd_jax.types import PyTree

Settings = tuple[float, int, float]  # temperature, top_k, top_p


def generate(
    config: DecoderConfig,
    params: PyTree,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    key: Key[Array, ""],
    *,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[int] = (),
    banned: Sequence[int] = (),
    numbers: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """(new tokens i32 [B, max_new], their number i32 [B]).

    Each row is sampled until it draws a token in stop, which is kept and counted, or has max_new
    tokens; behind a row's end are zeros. The loop ends early when every row has ended. A row's
    result depends on its prompt, the key and its number, not on other rows or on padding.

    prompts, lengths: tokens padded on the right and the number of them in each row, at least 1.
    params: plain weights (with LoRA: `lora.attach(...)`), in the layout of config.
    temperature: logits are divided by it before anything else; 0 takes the likeliest token (the
        first of equals) and reads neither key nor top_k, top_p.
    top_k: only the top_k likeliest tokens are drawn (those equal to the last too); 0 for all.
    top_p: after top_k, only the likeliest tokens that together reach probability top_p, the one
        that crosses it included (nucleus sampling, arXiv 1904.09751), and those equal to it.
    banned: ids that are never drawn, as if their probability were 0.
    numbers: what tells the draws of rows apart, by default their places in the batch.

    The settings are static: another value compiles again. ValueError names one out of range.
    """
    settings = checked(config, prompts, lengths, max_new, temperature, top_k, top_p)
    if any(not 0 <= token < config.vocab for token in banned):
        raise ValueError(f"banned: got {tuple(banned)}, takes ids from 0 to {config.vocab - 1}")
    fixed = (tuple(stop), tuple(banned))
    return _generate(config, params, prompts, lengths, key, max_new, settings, *fixed, numbers)


def checked(
    config: DecoderConfig,
    prompts: jax.Array,
    lengths: jax.Array,
    max_new: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Settings:
    """The settings of `draw`, after the checks of `generate`."""
    if max_new < 1:
        raise ValueError(f"max_new: got {max_new}, takes at least 1")
    if temperature < 0:
        raise ValueError(f"temperature: got {temperature}, takes 0 or more")
    if not 0 <= top_k <= config.vocab:
        raise ValueError(f"top_k: got {top_k}, takes 0 to the vocabulary's {config.vocab}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, takes a number in (0, 1]")
    if lengths.shape != prompts.shape[:1]:
        raise ValueError(f"lengths: got shape {lengths.shape}, takes {prompts.shape[:1]}")
    return float(temperature), int(top_k), float(top_p)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _generate(config, params, prompts, lengths, key, max_new, settings, stop, banned, numbers):
    def without_banned(forward):
        run = functools.partial(forward, config, params)
        if not banned:
            return run
        # A mask, not a scatter: the vocabulary may be split over devices.
        never = jnp.isin(jnp.arange(config.vocab), jnp.array(banned))[None]

        def masked(*arguments, **slots):
            logits, cache = run(*arguments, **slots)
            return jnp.where(never, -jnp.inf, logits), cache

        return masked

    return draw(
        without_banned(decode.prefill),
        without_banned(decode.step),
        prompts,
        lengths,
        key,
        max_new,
        settings,
        stop,
        numbers,
    )


def draw(
    prefill: Callable[..., tuple[jax.Array, PyTree]],
    step: Callable[..., tuple[jax.Array, PyTree]],
    prompts: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    max_new: int,
    settings: Settings,
    stop: tuple[int, ...],
    numbers: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The loop of `generate` over any model with a cache: a function to be jitted.

    prefill(prompts, lengths, slots=) and step(cache, tokens, positions) -> (logits [B, V], cache),
    as in `decode`.
    """
    rows = prompts.shape[0]
    numbers = jnp.arange(rows) if numbers is None else numbers
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)

    def token_of(logits, i):
        if settings[0] == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        kept = filter_logits(logits / settings[0], top_k=settings[1], top_p=settings[2])
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, i)
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    def stops(token):
        return jnp.any(token[:, None] == jnp.asarray(stop, jnp.int32)[None, :], axis=1)

    logits, cache = prefill(prompts, lengths, slots=prompts.shape[1] + max_new)
    first = token_of(logits, 0)
    tokens = jnp.zeros((rows, max_new), jnp.int32).at[:, 0].set(first)

    def unfinished(carry):
        i, _, _, ended, _, _ = carry
        return (i < max_new) & ~jnp.all(ended)

    def advance(carry):
        i, tokens, token, ended, count, cache = carry
        logits, cache = step(cache, token, lengths + i - 1)
        token = jnp.where(ended, 0, token_of(logits, i))
        return (
            i + 1,
            tokens.at[:, i].set(token),
            token,
            ended | stops(token),
            count + ~ended,
            cache,
        )

    start = (jnp.int32(1), tokens, first, stops(first), jnp.ones((rows,), jnp.int32), cache)
    _, tokens, _, _, count, _ = jax.lax.while_loop(unfinished, advance, start)
    return tokens, count


def filter_logits(
    logits: Float[Array, "B V"], *, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "B V"]:
    """Logits with -inf where `generate` draws nothing."""
    if top_k:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
