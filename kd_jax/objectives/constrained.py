"""Minimising one objective while another stays below a limit."""

import jax.numpy as jnp

from kd_jax.objectives.combinators import add
from kd_jax.types import Context, Objective, Output, Term


def primal_dual(
    objective: Objective,
    constraint: Objective,
    *,
    limit: float,
    rate: float = 1.0,
    start: float = 1.0,
    warmup_steps: int = 0,
) -> Objective:
    """objective + dual * constraint; after each step dual <- max(0, dual + rate (c - limit)).

    c: the constraint's value over the whole batch of that step, before its update. dual starts at
        `start` and stays there for `warmup_steps` steps.
    Terms "objective/..." and "constraint/..." (times dual); metrics "dual", the multiplier of
    this step, and "value/...", the constraint's terms without it. carry: {"parts": those of the
    two objectives, "dual": f32}. The loss leaves out -dual * limit, which has no gradient.

    The combinator of PDU, Entesari et al. 2025 (arXiv 2506.05314): objective `logit_margin` on
    forget rows, constraint the next-token NLL on retain rows; rate 1 and 5 epochs of warm-up in the
    released defaults. Released code can update once an epoch, from a pass over the retain set, too.
    """
    if rate < 0:
        raise ValueError(f"rate: got {rate}, takes numbers from 0")
    if start < 0:
        raise ValueError(f"start: got {start}, takes numbers from 0")
    both = add({"objective": objective, "constraint": constraint})

    def init(key, params, frozen, batch):
        aux, carry = both.init(key, params, frozen, batch)
        return aux, {"parts": carry, "dual": jnp.float32(start)}

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = both.loss(params, carry["parts"], frozen, batch, ctx)
        dual = carry["dual"]
        limited = {n: t for n, t in output.terms.items() if n.startswith("constraint/")}
        scaled = {n: t._replace(scale=t.scale * dual) for n, t in limited.items()}
        values = {f"value/{n.removeprefix('constraint/')}": t for n, t in limited.items()}
        metrics = output.metrics | values | {"dual": Term(dual, jnp.float32(1))}
        return output._replace(terms=output.terms | scaled, metrics=metrics)

    def update(carry, new_params, frozen, output: Output, ctx: Context):
        values = [term.value for n, term in output.metrics.items() if n.startswith("value/")]
        moved = jnp.maximum(carry["dual"] + rate * (sum(values) - limit), 0.0)
        return {
            "parts": both.update(carry["parts"], new_params, frozen, output, ctx),
            "dual": jnp.where(ctx.step < warmup_steps, carry["dual"], moved),
        }

    def stats(params, carry, frozen, batch, ctx: Context) -> dict[str, Term]:
        return both.stats(params, carry["parts"], frozen, batch, ctx) if both.stats else {}

    return both._replace(
        init=init, loss=loss, update=update, stats=None if both.stats is None else stats
    )
