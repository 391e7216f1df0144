"""Intransitive preference games as tables, and ways to play them in rounds against oneself."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.evaluation import games
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.preference.self_play import inpo

Array = jax.Array


class Game(NamedTuple):
    """preference [n, n], reference [n], and the key of what is drawn while it is played."""

    preference: Array
    reference: Array
    key: Array


class Play(NamedTuple):
    """tau: of the game. eta: of a step of mirror descent. pairs: drawn a round. steps: of gradient
    descent on them. beta: of DPO; 4 tau is its best response where P is near 1/2, since the slope
    of a sigmoid is 1/4."""

    rounds: int
    pairs: int
    steps: int
    eta: float = 0.3
    tau: float = 0.1

    @property
    def beta(self) -> float:
        return 4 * self.tau


# (game, round from 0, policy [n]) -> the next policy.
Update = Callable[[Play, Game, Array, Array], Array]


@functools.partial(jax.jit, static_argnums=1)
def drawn(seed: Array, actions: int) -> Game:
    """Rock, paper, scissors of n actions with a bias: each beats the next (n - 1) / 2 or so.

    P = 1/2 +- 0.3 around the circle, and noise of up to 0.15 for every two actions.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    ahead = (jnp.arange(actions)[None] - jnp.arange(actions)[:, None]) % actions
    circle = 0.3 * (jnp.sign(actions / 2 - ahead) * (ahead > 0))
    noise = jnp.triu(jax.random.uniform(keys[0], (actions, actions), minval=-0.15, maxval=0.15), 1)
    reference = jax.nn.softmax(jax.random.normal(keys[1], (actions,)))
    return Game(0.5 + circle + noise - noise.T, reference, keys[2])


def mirror_descent(play: Play, game: Game, number: Array, policy: Array) -> Array:
    return games.omd_update(game.preference, policy, game.reference, eta=play.eta, tau=play.tau)


def growing(play: Play, number: Array) -> Array:
    """The step of the paper's theorem, eta_t = tau (t + 2) / 2."""
    return play.tau * (number + 2) / 2


def mirror_descent_growing(play: Play, game: Game, number: Array, policy: Array) -> Array:
    eta = growing(play, number)
    return games.omd_update(game.preference, policy, game.reference, eta=eta, tau=play.tau)


def best_response(play: Play, game: Game, number: Array, policy: Array) -> Array:
    return games.best_response(game.preference, policy, game.reference, tau=play.tau)


def sampled_inpo(play: Play, game: Game, number: Array, policy: Array) -> Array:
    return _sampled_inpo(play.eta, play, game, number, policy)


def sampled_inpo_growing(play: Play, game: Game, number: Array, policy: Array) -> Array:
    return _sampled_inpo(growing(play, number), play, game, number, policy)


def _sampled_inpo(eta: Any, play: Play, game: Game, number: Array, policy: Array) -> Array:
    def loss(pairs: Pairs, iterate: tuple[Array, Array]) -> Array:
        return inpo(pairs, *iterate, eta=eta, tau=play.tau)

    return _learnt(loss, 0.5, play, game, number, policy)


def sampled_dpo(play: Play, game: Game, number: Array, policy: Array) -> Array:
    """Online DPO: each round on fresh pairs, always with the first reference."""
    return _learnt(
        lambda pairs, _: dpo(pairs, beta=play.beta), _dpo_rate(play), play, game, number, policy
    )


def sampled_dpo_restarted(play: Play, game: Game, number: Array, policy: Array) -> Array:
    """The last iterate is the reference of each round."""

    def loss(pairs: Pairs, iterate: tuple[Array, Array]) -> Array:
        chosen, rejected = iterate
        restarted = pairs._replace(reference_chosen=chosen, reference_rejected=rejected)
        return dpo(restarted, beta=play.beta)

    return _learnt(loss, _dpo_rate(play), play, game, number, policy)


METHODS: Mapping[str, tuple[str, Update]] = {
    "omd": ("mirror descent, exact", mirror_descent),
    "omd_growing": ("mirror descent, exact, growing eta", mirror_descent_growing),
    "inpo": ("INPO, sampled", sampled_inpo),
    "inpo_growing": ("INPO, sampled, growing eta", sampled_inpo_growing),
    "greedy": ("best response, exact", best_response),
    "dpo": ("iterative DPO, sampled", sampled_dpo),
    "dpo_restarted": ("iterative DPO, reference restarted", sampled_dpo_restarted),
}


@functools.cache
def played(update: Update, play: Play, actions: int) -> Any:
    """Jitted: seeds [S] -> (gaps [S, rounds + 1], policies [S, rounds + 1, n])."""

    def one(seed: Array) -> tuple[Array, Array]:
        game = drawn(seed, actions)

        def round_(policy: Array, number: Array) -> tuple[Array, Array]:
            new = update(play, game, number, policy)
            return new, new

        _, later = jax.lax.scan(round_, game.reference, jnp.arange(play.rounds))
        policies = jnp.concatenate([game.reference[None], later])
        gap = functools.partial(
            games.duality_gap, game.preference, reference=game.reference, tau=play.tau
        )
        return jax.vmap(lambda policy: gap(policy=policy))(policies), policies

    return jax.jit(jax.vmap(one))


@functools.cache
def nash(play: Play, actions: int, steps: int = 2000) -> Any:
    """Jitted: seeds [S] -> the Nash policies of their games [S, n], by small exact steps."""

    def one(seed: Array) -> Array:
        small, game = play._replace(eta=5 * play.tau), drawn(seed, actions)
        step = functools.partial(mirror_descent, small, game)
        return jax.lax.fori_loop(0, steps, step, game.reference)

    return jax.jit(jax.vmap(one))


def _dpo_rate(play: Play) -> float:
    # The curvature of DPO is at most beta**2 / 8 of that of the squared loss.
    return 4 / play.beta**2


def _learnt(
    loss: Callable[[Pairs, tuple[Array, Array]], Array],
    rate: float,
    play: Play,
    game: Game,
    number: Array,
    policy: Array,
) -> Array:
    """Gradient descent on logits, from the iterate, on pairs that it draws and P labels."""
    keys = jax.random.split(jax.random.fold_in(game.key, number), 2)
    first, second = jax.random.categorical(keys[0], jnp.log(policy), shape=(2, play.pairs))
    wins = jax.random.bernoulli(keys[1], game.preference[first, second])
    better, worse = jnp.where(wins, first, second), jnp.where(wins, second, first)
    n = policy.size
    share = jnp.zeros((n, n)).at[better, worse].add(1 / play.pairs).ravel()
    # All pairs that there can be, and how often each was drawn.
    chosen, rejected = (x.ravel() for x in jnp.indices((n, n)))
    fixed, start = jnp.log(game.reference), jnp.log(policy)

    def total(logits: Array) -> Array:
        own = jax.nn.log_softmax(logits)
        pairs = Pairs(own[chosen], own[rejected], fixed[chosen], fixed[rejected])
        return share @ loss(pairs, (start[chosen], start[rejected]))

    def step(_: Any, logits: Array) -> Array:
        return logits - rate * jax.grad(total)(logits)

    return jax.nn.softmax(jax.lax.fori_loop(0, play.steps, step, start))
