"""The worlds of the zoo: a true reward, a reference that learnt from demonstrations, and pairs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.preference.common import enumerated
from experiments.preference.common.enumerated import Completions


class Sizes(NamedTuple):
    prompts: int
    symbols: int
    longest: int
    width: int
    demonstrations: int
    pairs: int
    sft_steps: int
    sft_rate: float


# Of rewards under the demonstrators, for each prompt; how much the demonstrators know of it.
SPREAD, KNOWN, ENDS = 1.5, 0.3, 0.2


class World(NamedTuple):
    """What one seed draws.

    reward f32 [X, Y]: a completion beats another with probability sigmoid(of the difference).
    reference: weights of the language model that all training starts from. prompts, chosen,
    rejected int [N]: pairs of its completions, labelled by the reward.
    """

    reward: jax.Array
    reference: dict[str, jax.Array]
    prompts: jax.Array
    chosen: jax.Array
    rejected: jax.Array


def draw(key: jax.Array, sizes: Sizes, all: Completions) -> World:
    keys = jax.random.split(key, 6)
    base = _base(all, sizes.symbols)
    reward = _reward(keys[0], sizes, all, base)
    demonstrator = jax.nn.log_softmax(base[None] + KNOWN * reward)
    prompts, (said,) = _sample(keys[1], demonstrator, sizes.demonstrations, 1)
    start = enumerated.language_model(
        keys[2], sizes.prompts, sizes.symbols, sizes.longest, sizes.width
    )
    reference = _taught(start, prompts, said, sizes, all)
    following = enumerated.next_log_probs(reference, all.prefixes)
    log_p = enumerated.token_log_probs(following, all).sum(-1)
    prompts, (one, other) = _sample(keys[3], log_p, sizes.pairs, 2)
    first_wins = jax.random.bernoulli(
        keys[4], jax.nn.sigmoid(reward[prompts, one] - reward[prompts, other])
    )
    return World(
        reward,
        reference,
        prompts,
        jnp.where(first_wins, one, other),
        jnp.where(first_wins, other, one),
    )


def _base(all: Completions, symbols: int) -> jax.Array:
    """log-probabilities [Y] of texts that end with probability ENDS after each symbol."""
    ends = all.tokens == symbols
    each = jnp.where(ends, jnp.log(ENDS), jnp.log((1 - ENDS) / symbols))
    return (each * all.weights).sum(1)


def _reward(key: jax.Array, sizes: Sizes, all: Completions, base: jax.Array) -> jax.Array:
    """Worths of symbols, each prompt its own, and of neighbours; standardised for each prompt."""
    keys = jax.random.split(key, 2)
    symbols = sizes.symbols
    single = jax.random.normal(keys[0], (sizes.prompts, symbols + 1)).at[:, symbols].set(0.0)
    double = jax.random.normal(keys[1], (symbols + 1, symbols + 1))
    double = double.at[symbols].set(0.0).at[:, symbols].set(0.0)
    worth = (single[:, all.tokens] * all.weights[None]).sum(-1)
    worth += (double[all.tokens[:, :-1], all.tokens[:, 1:]] * all.weights[:, 1:]).sum(-1)[None]
    p = jnp.exp(base)[None]
    mean = (p * worth).sum(-1, keepdims=True)
    deviation = jnp.sqrt((p * jnp.square(worth - mean)).sum(-1, keepdims=True))
    return SPREAD * (worth - mean) / deviation


def _sample(
    key: jax.Array, log_p: jax.Array, count: int, each: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Prompts [count], uniform, and for each `each` different completions drawn from log_p."""
    keys = jax.random.split(key)
    prompts = jax.random.randint(keys[0], (count,), 0, log_p.shape[0])
    noisy = log_p[prompts] + jax.random.gumbel(keys[1], (count, log_p.shape[1]))
    drawn = jax.lax.top_k(noisy, each)[1]
    return prompts, tuple(drawn.T)


def _taught(
    start: dict[str, jax.Array],
    prompts: jax.Array,
    said: jax.Array,
    sizes: Sizes,
    all: Completions,
) -> dict[str, jax.Array]:
    """Maximum likelihood of the demonstrations by full batches of Adam."""
    optimizer = optax.adam(sizes.sft_rate)

    def nll(weights: dict[str, jax.Array]) -> jax.Array:
        following = enumerated.next_log_probs(weights, all.prefixes)
        return -enumerated.token_log_probs(following, all).sum(-1)[prompts, said].mean()

    def step(state: Any, _: None) -> Any:
        weights, moments = state
        updates, moments = optimizer.update(jax.grad(nll)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, sizes.sft_steps)
    return weights
