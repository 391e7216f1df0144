"""What every objective on text has to hold, for tables of them in the tests of each family:

@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.bigram import bigram_model, padded, spoil, text_batch
from support.linear import assert_trees_close

from kd_jax.steps import make_train_step
from kd_jax.types import Context, Model, Objective

MODEL = bigram_model()
KEY = jax.random.key(0)
PARAMS = MODEL.init(jax.random.key(1))
FROZEN = {name: MODEL.init(jax.random.key(i)) for i, name in enumerate(("reference", "teacher"), 7)}


class Case(NamedTuple):
    """make(model) -> the objective; parts: the batch's parts, or none where it is one text batch.

    row: what a row has besides, {name: number}, as `reference_log_probs`.
    text: makes a text batch of so many rows.
    """

    make: Callable[[Model], Objective]
    parts: tuple[str, ...] = ()
    row: tuple[tuple[str, float], ...] = ()
    text: Callable[..., dict] = text_batch


def batch_for(case: Case, change: Callable[[dict], dict] = lambda b: b, rows: int = 4) -> Any:
    def one(seed: int) -> dict:
        batch = case.text(rows, seed=seed)
        return change(batch | {name: jnp.full((rows,), x) for name, x in case.row})

    if not case.parts:
        return one(0)
    return {part: one(i) for i, part in enumerate(case.parts)}


@functools.cache  # one compilation for a shape, whichever law asks
def _compiled(case: Case, microbatches: int = 1) -> Any:
    step = make_train_step(case.make(MODEL), optax.sgd(0.5), microbatches=microbatches)
    return step.init(KEY, PARAMS, FROZEN, batch_for(case)), jax.jit(step.apply)


def one_step(case: Case, batch: Any, microbatches: int = 1) -> Any:
    state, step = _compiled(case, microbatches)
    return step(state, FROZEN, batch)


def padding_moves_no_number(case: Case) -> None:
    """Neither prompts' targets, nor padding, nor padding rows."""
    expected = one_step(case, batch_for(case))
    assert_trees_close(expected, one_step(case, batch_for(case, spoil)))
    assert_trees_close(expected, one_step(case, batch_for(case, padded)))


def weighed_tokens_move_numbers(case: Case) -> None:
    """In every part; so that the law above can fail."""
    batch = batch_for(case)
    loss = float(one_step(case, batch)[1]["loss"])
    for part in case.parts or (None,):
        whole = batch if part is None else batch[part]
        shifted = whole | {"inputs": whole["inputs"].at[1, 1].add(1) % 5}
        other = shifted if part is None else batch | {part: shifted}
        assert abs(float(one_step(case, other)[1]["loss"]) - loss) > 1e-4, part


def microbatches_on_four_devices_change_nothing(case: Case) -> None:
    batch = batch_for(case, rows=8)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    parts = 1 if case.make(MODEL).whole_batch else 2
    assert_trees_close(one_step(case, batch), one_step(case, sharded, parts))


def no_gradient_reaches_what_is_frozen(case: Case) -> None:
    """And one does reach the model."""
    # Streamed losses stop it as well, those of a dense head do not.
    objective, batch = case.make(bigram_model(factored=False)), batch_for(case)
    aux, carry = objective.init(KEY, PARAMS, FROZEN, batch)

    def loss(model: Any, frozen: Any) -> jax.Array:
        params = {"model": model, "aux": aux}
        ctx = Context(KEY, jnp.int32(0))
        if objective.stats is not None:
            terms = objective.stats(params, carry, frozen, batch, ctx)
            stats = {name: jax.lax.stop_gradient(term.value) for name, term in terms.items()}
            ctx = ctx._replace(stats=stats)
        return objective.loss(params, carry, frozen, batch, ctx).loss

    of_model, of_frozen = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, FROZEN)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(of_model))
    for leaf in jax.tree.leaves(of_frozen):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


LAWS = (
    padding_moves_no_number,
    weighed_tokens_move_numbers,
    # Compiles each objective anew for four devices.
    pytest.param(microbatches_on_four_devices_change_nothing, marks=pytest.mark.slow),
    no_gradient_reaches_what_is_frozen,
)
