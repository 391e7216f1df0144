"""Supervised training: terms of one model's output."""

from collections.abc import Callable, Mapping

from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Batch, Context, Model, ModelOutput, Objective, Output, Policy, Term

TermOf = Callable[[ModelOutput, Batch], Term]


def supervise(
    model: Model,
    terms: Mapping[str, TermOf],
    *,
    metrics: Mapping[str, TermOf] | None = None,
    policy: Policy = own_weights,
) -> Objective:
    """The sum of terms (output, batch) -> Term on one forward pass of the model.

    carry is the model's own state (BatchNorm statistics), {} for models without.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(
            policy(params, frozen), batch, state=carry, key=ctx.key, train=ctx.train
        )
        return Output(
            {name: term(output, batch) for name, term in terms.items()},
            {name: metric(output, batch) for name, metric in (metrics or {}).items()},
            {},
            output.state,
        )

    return Objective(
        init=lambda key, params, frozen, batch: ({}, model.state()),
        loss=loss,
        update=lambda carry, new_params, frozen, output, ctx: output.state,
    )
