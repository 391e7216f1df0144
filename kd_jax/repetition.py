"""Several trainings of one kind side by side in one program: the same step, other seeds."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.types import Batch, Frozen, Metrics, PyTree, TrainState, TrainStep

Over = Callable[[Callable[..., PyTree], int], Callable[..., PyTree]]


def side_by_side(f: Callable[..., PyTree], count: int) -> Callable[..., PyTree]:
    """f over the leading axis, `count`, of every leaf of its arguments; results are stacked.

    `vmap`, but written out on CPUs. With other weights in each, a convolution is grouped, for which
    XLA's CPU backend has no fast code (six times slower at five trainings of a small network), and
    in a loop it has none for any.
    """

    def written_out(*args: Any) -> PyTree:
        each = [f(*jax.tree.map(lambda x, i=i: x[i], args)) for i in range(count)]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    def run(*args: Any) -> PyTree:
        return jax.lax.platform_dependent(*args, cpu=written_out, default=jax.vmap(f))

    return run


def batched(f: Callable[..., PyTree], count: int) -> Callable[..., PyTree]:
    """`vmap` on CPUs too: compiled in the same time whatever the count.

    There it is the better one for networks of matrix products, and on small maps for convolutions
    that are made so (`convolution.as_product`); on larger maps they are slow.
    """
    return jax.vmap(f, axis_size=count)


def repeated(
    step: TrainStep, count: int, *, own: Collection[str] = (), over: Over = side_by_side
) -> TrainStep:
    """The step of `count` trainings that do not see each other, S of them.

    params, opt_state and carry have a leading axis S; leaves of the batch are [B, S, ...], so that
    rows still come first; entries of frozen named in `own` have a leading axis S, the others are
    shared. Training s draws from fold_in(key, s). Metrics are means over trainings, so that they
    are not finite where one training's are not.

    A training comes out as it would alone, up to rounding. over: how they are put into one program;
    `batched` compiles faster, where the networks have no convolutions on large maps.
    """

    def init(keys: jax.Array, params: PyTree, frozen: Frozen, batch: Batch) -> TrainState:
        def one(number, params, mine, rows):
            return step.init(jax.random.fold_in(keys, number), params, {**frozen, **mine}, rows)

        mine, _ = _parted(frozen, own)
        state = jax.vmap(one)(jnp.arange(count), params, mine, _by_training(batch))
        return state._replace(step=jnp.zeros((), jnp.int32), key=keys)

    def apply(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        mine, shared = _parted(frozen, own)

        def one(number, params, opt_state, carry, mine, rows):
            key = jax.random.fold_in(state.key, number)
            alone = TrainState(state.step, params, opt_state, carry, key)
            new, metrics = step(alone, {**shared, **mine}, rows)
            return (new.params, new.opt_state, new.carry), metrics

        (params, opt_state, carry), metrics = over(one, count)(
            jnp.arange(count), state.params, state.opt_state, state.carry, mine, _by_training(batch)
        )
        new = TrainState(state.step + 1, params, opt_state, carry, state.key)
        return new, {name: x.mean(0) for name, x in metrics.items()}

    return TrainStep(init, apply)


def repeated_prepare(
    prepare: Callable[[TrainState, Frozen, Batch], Batch],
    count: int,
    *,
    over: Over = side_by_side,
) -> Callable[[TrainState, Frozen, Batch], Batch]:
    """The `prepare` of a `repeated` step: that of each training on its own part of the batch.

    over: as in `repeated`.
    """

    def apply(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        def one(number, params, opt_state, carry, rows):
            key = jax.random.fold_in(state.key, number)
            return prepare(TrainState(state.step, params, opt_state, carry, key), frozen, rows)

        found = over(one, count)(
            jnp.arange(count), state.params, state.opt_state, state.carry, _by_training(batch)
        )
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

    return apply


def _by_training(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch)


def _parted(frozen: Frozen, own: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(entries of each training, entries that all share)."""
    unknown = [name for name in own if name not in frozen]
    if unknown:
        raise ValueError(f"own: got {', '.join(unknown)}, takes some of {', '.join(frozen)}")
    mine = {name: x for name, x in frozen.items() if name in own}
    return mine, {name: x for name, x in frozen.items() if name not in own}
