"""Objectives from objectives: sums over different inputs, scales and schedules."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from kd_jax.types import Batch, Context, Frozen, Objective, Output, Params, Term

PyTree = Any


def own_weights(params: Params, frozen: Frozen) -> PyTree:
    """The default policy: the model is what is trained, params["model"]."""
    return params["model"]


def frozen_weights(name: str) -> Callable[[Params, Frozen], PyTree]:
    """The policy of a model that is read and never trained: frozen[name]."""
    return lambda params, frozen: frozen[name]


def on(key: str, objective: Objective) -> Objective:
    """The objective on batch[key]: one part of a batch of several parts."""

    def part(batch: Batch) -> Batch:
        if key not in batch:
            raise ValueError(f"batch: got the parts {', '.join(sorted(batch))}, takes {key!r}")
        return batch[key]

    stats = objective.stats
    return objective._replace(
        init=lambda k, params, frozen, batch: objective.init(k, params, frozen, part(batch)),
        loss=lambda params, carry, frozen, batch, ctx: objective.loss(
            params, carry, frozen, part(batch), ctx
        ),
        stats=None
        if stats is None
        else lambda params, carry, frozen, batch, ctx: stats(
            params, carry, frozen, part(batch), ctx
        ),
    )


def add(parts: Mapping[str, Objective]) -> Objective:
    """The sum of objectives, each with its own aux parameters, carry and forward passes.

    Terms, metrics, rows and stats are named "part/name". Losses that share a forward pass belong
    in one objective instead: XLA does not merge repeated forwards.
    """
    if not parts:
        raise ValueError("parts: got none, takes at least one objective")
    nested = [name for name in parts if "/" in name]
    if nested:
        raise ValueError(f"parts: got {', '.join(nested)}, takes names without /")

    def own(params: Params, name: str) -> Params:
        return {"model": params["model"], "aux": params["aux"][name]}

    def context(ctx: Context, i: int, name: str) -> Context:
        return ctx._replace(key=jax.random.fold_in(ctx.key, i), stats=stripped(ctx.stats, name))

    def init(key, params, frozen, batch):
        made = {
            name: part.init(jax.random.fold_in(key, i), params, frozen, batch)
            for i, (name, part) in enumerate(parts.items())
        }
        return {n: aux for n, (aux, _) in made.items()}, {
            n: carry for n, (_, carry) in made.items()
        }

    def loss(params, carry, frozen, batch, ctx) -> Output:
        outputs = {
            name: part.loss(own(params, name), carry[name], frozen, batch, context(ctx, i, name))
            for i, (name, part) in enumerate(parts.items())
        }
        return Output(
            prefixed({n: o.terms for n, o in outputs.items()}),
            prefixed({n: o.metrics for n, o in outputs.items()}),
            prefixed({n: o.rows for n, o in outputs.items()}),
            {n: o.state for n, o in outputs.items()},
        )

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        return {
            name: part.update(
                carry[name],
                own(new_params, name),
                frozen,
                Output(
                    stripped(output.terms, name),
                    stripped(output.metrics, name),
                    stripped(output.rows, name),
                    output.state[name],
                ),
                context(ctx, i, name),
            )
            for i, (name, part) in enumerate(parts.items())
        }

    def stats(params, carry, frozen, batch, ctx) -> dict[str, Term]:
        return prefixed(
            {
                name: part.stats(
                    own(params, name), carry[name], frozen, batch, context(ctx, i, name)
                )
                for i, (name, part) in enumerate(parts.items())
                if part.stats is not None
            }
        )

    return Objective(
        init,
        loss,
        update,
        stats if any(part.stats is not None for part in parts.values()) else None,
        any(part.whole_batch for part in parts.values()),
    )


def prefixed(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"name/key": x} of {name: {key: x}}."""
    return {f"{name}/{key}": x for name, group in groups.items() for key, x in group.items()}


def stripped(named: Mapping[str, Any], name: str) -> dict[str, Any]:
    """{key: x} of the entries "name/key"."""
    return {k[len(name) + 1 :]: x for k, x in named.items() if k.startswith(name + "/")}


def scaled(objective: Objective, scale: float) -> Objective:
    """The objective with every term's scale multiplied by `scale`."""
    return scheduled(objective, lambda step: scale)


def scheduled(objective: Objective, schedule: Callable[[jax.Array], Any]) -> Objective:
    """The objective with every term's scale multiplied by schedule(step)."""

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = objective.loss(params, carry, frozen, batch, ctx)
        factor = schedule(ctx.step)
        terms = {n: t._replace(scale=t.scale * factor) for n, t in output.terms.items()}
        return output._replace(terms=terms)

    return objective._replace(loss=loss)
