"""Exact gradients over microbatches: the same numbers however a batch is cut.

A mean of microbatch means is not the mean of the batch when weights are uneven. Here each term is
divided by its weight over the whole batch before it is differentiated; those weights are found
first, from the part of the traced objective that computes them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

from kd_jax.gradients import belongs
from kd_jax.trees import combine
from kd_jax.types import Batch, Context, Frozen, Grad, Objective, Output, Params, Term, TrainState

PyTree = Any


def exact_grad(
    objective: Objective,
    state: TrainState,
    rest: Params,
    frozen: Frozen,
    batch: Batch,
    key: jax.Array,
    count: int,
    *,
    train: bool = True,
) -> Grad:
    """grad(trained, only=None) -> (grads, output) of the objective on `count` microbatches.

    rest: the part of params that is not differentiated. `only` names one term, or the component
    before "/" of several. train: what the objective is told in ctx.
    """
    parts = cut(batch, count)
    keys = jax.random.split(key, count)

    def over_parts(f: Callable[[Batch, jax.Array], PyTree], summed: Callable[[PyTree], PyTree]):
        """Results of f on all microbatches: (sum of summed(result), stacked results without it).

        A single microbatch is called directly: no loop in the compiled program.
        """
        if count == 1:
            result = f(batch, keys[0])
            total, others = summed(result)
            return total, jax.tree.map(lambda x: x[None], others)

        def body(total: PyTree, part: tuple[Batch, jax.Array]) -> tuple[PyTree, PyTree]:
            new, others = summed(f(*part))
            return jax.tree.map(jnp.add, total, new), others

        first = jax.eval_shape(lambda: summed(f(*_first(parts, keys)))[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        return jax.lax.scan(body, zeros, (parts, keys))

    def stats_of(params: Params) -> dict[str, jax.Array]:
        stats = objective.stats
        if stats is None:
            return {}

        def terms(part: Batch, key: jax.Array) -> dict[str, Term]:
            return stats(params, state.carry, frozen, part, Context(key, state.step, train))

        def sums(terms: dict[str, Term]) -> tuple[PyTree, PyTree]:
            return {n: (t.total, t.weight) for n, t in terms.items()}, {
                n: jnp.float32(t.scale) for n, t in terms.items()
            }

        totals, scales = over_parts(terms, sums)
        values = {n: Term(t, w, scales[n][0]).value for n, (t, w) in totals.items()}
        return jax.lax.stop_gradient(values)

    def grad(trained: Params, only: str | None = None) -> tuple[Params, Output]:
        stats = stats_of(combine(trained, rest))

        def output_of(trained, carry, stats, frozen, part, key) -> Output:
            ctx = Context(key, state.step, train, stats)
            return objective.loss(combine(trained, rest), carry, frozen, part, ctx)

        weights = _whole_weights(output_of, trained, state.carry, stats, frozen, parts, keys)

        def loss(trained: Params, part: Batch, key: jax.Array) -> tuple[jax.Array, Output]:
            output = output_of(trained, state.carry, stats, frozen, part, key)
            chosen = {n: t for n, t in output.terms.items() if belongs(n, only)}
            if not chosen:
                raise ValueError(f"only: got {only!r}, takes one of {', '.join(output.terms)}")
            whole = {n: t._replace(weight=weights[n]) for n, t in chosen.items()}
            return Output(whole).loss, output

        def one(part: Batch, key: jax.Array) -> tuple[Params, Output]:
            return jax.grad(loss, has_aux=True)(trained, part, key)

        def sums(result: tuple[Params, Output]) -> tuple[PyTree, PyTree]:
            grads, output = result
            terms = output.terms, output.metrics
            added = jax.tree.map(lambda t: (t.total, t.weight), terms, is_leaf=_is_term)
            scales = jax.tree.map(lambda t: jnp.float32(t.scale), terms, is_leaf=_is_term)
            # Accumulated in float32: k bfloat16 additions would lose what microbatches save.
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads) if count > 1 else grads
            return (grads, added), (scales, output.rows, output.state)

        (grads, added), (scales, rows, model_state) = over_parts(one, sums)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, trained)
        terms, metrics = (
            {n: Term(t, w, s[n][0]) for n, (t, w) in a.items()}
            for a, s in zip(added, scales, strict=True)
        )
        rows = jax.tree.map(_join_rows, rows)
        model_state = jax.tree.map(lambda x: x.mean(0).astype(x.dtype), model_state)
        return grads, Output(terms, metrics, rows, model_state)

    return grad


def _is_term(x: Any) -> bool:
    return isinstance(x, Term)


def cut(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [count, B / count, ...]; part j is rows j::count: shards split locally."""

    def parts(x: jax.Array) -> jax.Array:
        if jnp.ndim(x) == 0 or x.shape[0] % count:
            raise ValueError(
                f"microbatches: got {count}, takes a divisor of every leading axis of the batch; "
                f"one has shape {jnp.shape(x)}"
            )
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(parts, batch)


def _first(parts: Batch, keys: jax.Array) -> tuple[Batch, jax.Array]:
    return jax.tree.map(lambda x: x[0], parts), keys[0]


def _join_rows(x: jax.Array) -> jax.Array:
    """The inverse of `cut`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def _whole_weights(
    output_of: Callable[..., Output],
    trained: Params,
    carry: PyTree,
    stats: Mapping[str, jax.Array],
    frozen: Frozen,
    parts: Batch,
    keys: jax.Array,
) -> dict[str, jax.Array]:
    """The weight of each term over all microbatches, without running a forward pass.

    The objective is traced, and everything that the weights do not need is removed from the
    trace; what is left must not read params, carry or stats.
    """

    def weights_of(read, frozen, part, key) -> dict[str, jax.Array]:
        output = output_of(*read, frozen, part, key)
        return {n: jnp.float32(t.weight) for n, t in output.terms.items()}

    part, key = _first(parts, keys)
    read = (trained, carry, stats)
    closed, shapes = jax.make_jaxpr(weights_of, return_shape=True)(read, frozen, part, key)
    names = sorted(shapes)  # a dict's leaves come in sorted order
    n_read = len(jax.tree.leaves(read))
    faulty = [
        name
        for name in names
        if any(partial_eval.dce_jaxpr(closed.jaxpr, [n == name for n in names])[1][:n_read])
    ]
    if faulty:
        raise ValueError(
            f"the weight of {', '.join(faulty)} depends on params, carry or stats; a Term's weight "
            "may depend on batch, frozen and key alone"
        )
    pruned, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(names))
    weigh = jaxpr_as_fun(ClosedJaxpr(pruned, closed.consts))
    fixed = jax.tree.leaves((read, frozen))

    def body(total: list[jax.Array], part: PyTree) -> tuple[list[jax.Array], None]:
        inputs = [x for x, u in zip([*fixed, *jax.tree.leaves(part)], used, strict=True) if u]
        return [a + b for a, b in zip(total, weigh(*inputs), strict=True)], None

    total, _ = jax.lax.scan(body, [jnp.float32(0)] * len(names), (parts, keys))
    return jax.lax.stop_gradient(dict(zip(names, total, strict=True)))
