"""One protocol for all losses: full batches of Adam from the reference, measured exactly."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from experiments.preference.common import enumerated
from experiments.preference.common.enumerated import Completions
from experiments.preference.parts.zoo_methods import METHODS, Seen
from experiments.preference.parts.zoo_world import World
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.preference.pairs import Pairs, log_ratios
from kd_jax.losses.preference.tokens import log_collision, wpo_weight


class Measured(NamedTuple):
    """Of a policy, f32 scalars. win_rate: against the reference; kl: KL(policy || reference) in
    nats. chosen, rejected: changes of the mean log-probability of the pairs' completions. accuracy:
    share of pairs with u > 0. reward, length: expectations under the policy.
    """

    win_rate: jax.Array
    kl: jax.Array
    chosen: jax.Array
    rejected: jax.Array
    accuracy: jax.Array
    reward: jax.Array
    length: jax.Array


class _Table(NamedTuple):
    """following [X, C, V]: next symbols' log-probabilities. tokens [X, Y, T]: of completions."""

    following: jax.Array
    tokens: jax.Array


def trained(
    names: Sequence[str], all: Completions, rate: float, points: int, every: int
) -> Callable[[ArrayLike, World, jax.Array], Measured]:
    """(index into names, worlds [R], betas [R]) -> measures [R, points + 1] along training.

    One program for all losses: the index chooses the branch that is run.
    """
    losses = [METHODS[name].loss for name in names]
    optimizer = optax.adam(rate)

    def run(index: jax.Array, world: World, beta: jax.Array) -> Measured:
        reference = _table(world.reference, all)
        wins = enumerated.wins_against(reference.tokens.sum(-1), world.reward)
        measure = functools.partial(_measured, world, reference, wins, all)

        def loss(weights, mean, step):
            seen = _seen(_table(weights, all), reference, world, all)
            ratios = jnp.stack(log_ratios(seen.pairs))
            # The mean over the run so far, this step among it.
            mean += (jax.lax.stop_gradient(ratios.mean()) - mean) / (step + 1)
            branches = [lambda seen, beta, one=one: one(seen, beta).mean() for one in losses]
            return jax.lax.switch(index, branches, seen._replace(shift=mean), beta), mean

        def step(state, at):
            weights, moments, mean = state
            grads, mean = jax.grad(loss, has_aux=True)(weights, mean, at)
            updates, moments = optimizer.update(grads, moments)
            return (optax.apply_updates(weights, updates), moments, mean), None

        def stretch(state, first):
            state, _ = jax.lax.scan(step, state, first + jnp.arange(every))
            return state, measure(state[0])

        start = (world.reference, optimizer.init(world.reference), jnp.zeros(()))
        _, along = jax.lax.scan(stretch, start, every * jnp.arange(points))
        first = measure(world.reference)
        return jax.tree.map(lambda x, more: jnp.concatenate([x[None], more]), first, along)

    return jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))


def _table(weights: dict[str, jax.Array], all: Completions) -> _Table:
    following = enumerated.next_log_probs(weights, all.prefixes)
    return _Table(following, enumerated.token_log_probs(following, all))


def _measured(
    world: World, reference: _Table, wins: jax.Array, all: Completions, weights
) -> Measured:
    policy = _table(weights, all).tokens.sum(-1)
    before = reference.tokens.sum(-1)
    change = policy - before
    chosen, rejected = (change[world.prompts, side] for side in (world.chosen, world.rejected))
    return Measured(
        enumerated.mean_under(policy, wins),
        enumerated.kl(policy, before),
        chosen.mean(),
        rejected.mean(),
        (chosen > rejected).mean(),
        enumerated.mean_under(policy, world.reward),
        enumerated.mean_under(policy, jnp.asarray(all.lengths)),
    )


def _seen(policy: _Table, reference: _Table, world: World, all: Completions) -> Seen:
    prompts, sides = world.prompts, (world.chosen, world.rejected)
    lengths = jnp.asarray(all.lengths)
    both = [lengths[side] for side in sides]
    shortest = jnp.minimum(*both)
    shared = jnp.arange(all.tokens.shape[1])[None] < shortest[:, None]

    def sums(table: _Table, mask: jax.Array | float = 1.0) -> list[jax.Array]:
        return [(table.tokens[prompts, side] * mask).sum(-1) for side in sides]

    drift = forward_kl(policy.following, reference.following)  # [X, C], KL(reference || policy)
    collisions = log_collision(policy.following)
    kls, own = [], []
    for side in sides:
        contexts, weights = (jnp.asarray(x)[side] for x in (all.contexts, all.weights))
        kls.append((drift[prompts[:, None], contexts] * weights).sum(-1))
        here = collisions[prompts[:, None], contexts]
        own.append(wpo_weight(policy.tokens[prompts, side], here, weights))
    # Completions of the next pair stand behind this pair's prompt.
    change = (policy.tokens - reference.tokens).sum(-1)
    mismatched = jnp.concatenate([change[prompts, jnp.roll(side, 1)] for side in sides])
    return Seen(
        pairs=Pairs(*sums(policy), *sums(reference), *both),
        shared=Pairs(*sums(policy, shared), *sums(reference, shared)),
        chosen_kl=kls[0],
        rejected_kl=kls[1],
        own=own[0] * own[1],
        mismatched=mismatched,
        shift=jnp.zeros(()),
    )
