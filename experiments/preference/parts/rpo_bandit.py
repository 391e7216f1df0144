"""Bandits of which pairs show only a few actions, and a policy that extrapolates by features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.preference.regularised import rpo


class Sizes(NamedTuple):
    actions: int
    covered: int
    features: int
    pairs: int


class Bandit(NamedTuple):
    """features [A, d] of the policy, log pi = log softmax(features @ theta), theta 0 at first: the
    reference is uniform. reward [A]: standardised. covered bool [A]. chosen, rejected int [N]."""

    features: jax.Array
    reward: jax.Array
    covered: jax.Array
    chosen: jax.Array
    rejected: jax.Array


class Measured(NamedTuple):
    """Of a policy, f32 scalars. reward: its true expectation. chosen: mean log-probability of the
    pairs' chosen actions, in nats. uncovered: probability of actions that no pair shows."""

    reward: jax.Array
    chosen: jax.Array
    uncovered: jax.Array


def draw(key: jax.Array, linear: bool, sizes: Sizes) -> Bandit:
    """Pairs of the actions in the middle of the ranking, labelled by Bradley and Terry's model.

    linear: the reward is linear in the policy's features; else it has nothing to do with them.
    """
    keys = jax.random.split(key, 5)
    features = jax.random.normal(keys[0], (sizes.actions, sizes.features))
    worth = jax.random.normal(keys[1], (sizes.features if linear else sizes.actions,))
    reward = features @ worth if linear else worth
    reward = (reward - reward.mean()) / reward.std()
    first = (sizes.actions - sizes.covered) // 2
    middle = jnp.argsort(reward)[first : first + sizes.covered]
    covered = jnp.zeros(sizes.actions, bool).at[middle].set(True)
    draws = jax.vmap(lambda k: jax.random.choice(k, middle, (2,), replace=False))
    one, other = draws(jax.random.split(keys[2], sizes.pairs)).T
    wins = jax.random.bernoulli(keys[3], jax.nn.sigmoid(reward[one] - reward[other]))
    return Bandit(
        features, reward, covered, jnp.where(wins, one, other), jnp.where(wins, other, one)
    )


def trained(
    sizes: Sizes, linear: bool, beta: float, rate: float, points: int, every: int
) -> Callable[[jax.Array, jax.Array], Measured]:
    """(seeds [S], etas [E]) -> measures [E, S, points + 1] along full-batch Adam from the
    reference; eta 0 is DPO."""

    def run(seed: jax.Array, eta: jax.Array) -> Measured:
        bandit = draw(jax.random.key(seed), linear, sizes)
        optimizer = optax.adam(rate)

        def log_policy(theta: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(bandit.features @ theta)

        def loss(theta: jax.Array) -> jax.Array:
            log_p, uniform = log_policy(theta), -jnp.log(sizes.actions) * jnp.ones(sizes.pairs)
            pairs = Pairs(log_p[bandit.chosen], log_p[bandit.rejected], uniform, uniform)
            return rpo(pairs, beta=beta, eta=eta).mean()

        def measure(theta: jax.Array) -> Measured:
            log_p = log_policy(theta)
            p = jnp.exp(log_p)
            return Measured(
                (p * bandit.reward).sum(),
                log_p[bandit.chosen].mean(),
                jnp.where(bandit.covered, 0.0, p).sum(),
            )

        def step(state: Any, _: None) -> Any:
            theta, moments = state
            updates, moments = optimizer.update(jax.grad(loss)(theta), moments)
            return (optax.apply_updates(theta, updates), moments), None

        def stretch(state: Any, _: None) -> Any:
            state, _ = jax.lax.scan(step, state, None, every)
            return state, measure(state[0])

        theta = jnp.zeros(sizes.features)
        _, along = jax.lax.scan(stretch, (theta, optimizer.init(theta)), None, points)
        return jax.tree.map(lambda x, rest: jnp.append(x, rest), measure(theta), along)

    over_seeds = jax.vmap(run, in_axes=(0, None))
    return jax.jit(jax.vmap(over_seeds, in_axes=(None, 0)))
