"""Language models small enough that every completion can be written down.

With S symbols and completions of at most T of them, X prompts have Y = 1 + S + ... + S**T
completions each, in C = 1 + S + ... + S**(T - 1) contexts. So a policy's win rate, its KL to a
reference and the best that any policy could do are sums, not estimates.

Shapes: X prompts, Y completions, C contexts, T tokens, V = S + 1 symbols with the end of text.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Completions(NamedTuple):
    """All completions of up to T symbols; one of fewer ends with a token for the end, index S.

    tokens, contexts int [Y, T]: what is said, and in which context. weights f32 [Y, T]: 1 on
    tokens (the end among them), 0 on padding. prefixes int [C, T]: the symbols of each context,
    filled up on the left with S.
    """

    tokens: np.ndarray
    contexts: np.ndarray
    weights: np.ndarray
    prefixes: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """f32 [Y]: tokens of each, the end among them."""
        return self.weights.sum(1)


def completions(symbols: int, longest: int) -> Completions:
    """In order of length, then as words in a dictionary; the first is empty."""
    texts = [
        text
        for length in range(longest + 1)
        for text in itertools.product(range(symbols), repeat=length)
    ]
    context_of = {text: i for i, text in enumerate(texts) if len(text) < longest}
    said = [text + (symbols,) * (len(text) < longest) for text in texts]
    shape = (len(texts), longest)
    tokens, contexts, weights = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape)
    for i, text in enumerate(said):
        tokens[i, : len(text)] = text
        contexts[i, : len(text)] = [context_of[text[:t]] for t in range(len(text))]
        weights[i, : len(text)] = 1
    prefixes = [(symbols,) * (longest - len(text)) + text for text in context_of]
    return Completions(tokens, contexts, weights.astype(np.float32), np.array(prefixes))


def language_model(
    key: jax.Array, prompts: int, symbols: int, longest: int, width: int
) -> dict[str, jax.Array]:
    """Weights of a feed-forward language model of the prompt and the symbols so far."""
    keys = jax.random.split(key, 4)
    return {
        "prompts": jax.random.normal(keys[0], (prompts, width)),
        "symbols": jax.random.normal(keys[1], (longest, symbols + 1, width)) / longest**0.5,
        "hidden": jax.random.normal(keys[2], (width, width)) / width**0.5,
        "bias": jnp.zeros(width),
        "out": jax.random.normal(keys[3], (width, symbols + 1)) / width**0.5,
    }


def next_log_probs(weights: dict[str, jax.Array], prefixes: np.ndarray) -> jax.Array:
    """log p(next symbol | prompt, context), f32 [X, C, V]."""
    places = np.arange(prefixes.shape[1])
    read = weights["symbols"][places, prefixes].sum(1)  # [C, width]
    first = jnp.tanh(weights["prompts"][:, None] + read[None])
    second = jnp.tanh(first @ weights["hidden"] + weights["bias"][None, None])
    return jax.nn.log_softmax(second @ weights["out"])


def token_log_probs(following: jax.Array, all: Completions) -> jax.Array:
    """log p of each token of each completion, f32 [X, Y, T], 0 on padding; following [X, C, V]."""
    return following[:, all.contexts, all.tokens] * all.weights[None]


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q) of distributions over completions, mean over prompts; nats."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def wins_against(log_p: jax.Array, reward: jax.Array) -> jax.Array:
    """P(y beats a completion sampled from p), f32 [X, Y]; Bradley and Terry's model of `reward`."""
    beats = jax.nn.sigmoid(reward[:, :, None] - reward[:, None, :])
    return jnp.einsum("xyz,xz->xy", beats, jnp.exp(log_p))


def mean_under(log_p: jax.Array, of: jax.Array) -> jax.Array:
    """The expectation of `of` [X, Y] (or [Y]) under p, mean over prompts."""
    return (jnp.exp(log_p) * jnp.broadcast_to(of, log_p.shape)).sum(-1).mean()


def best_possible(
    reference: jax.Array, wins: jax.Array, strengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(KL to the reference, win rate) of p ~ reference exp(strength wins), for each strength.

    No policy has a higher win rate at the same KL: both ascend with the strength.
    """

    def at(strength: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_p = jax.nn.log_softmax(reference + strength * wins)
        return kl(log_p, reference), mean_under(log_p, wins)

    return jax.vmap(at)(strengths)
