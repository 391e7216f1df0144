"""Model stock against numbers worked out by hand, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.merging.average import average
from kd_jax.merging.model_stock import model_stock, model_stock_rows

# Multiples of 1/8: no subnormal numbers, which XLA flushes to zero.
eighths = st.integers(-32, 32).map(lambda i: np.float32(i / 8))
stacks = hnp.arrays(np.float32, (4, 6), elements=eighths)


def tree(x):
    return {"a": jnp.asarray(x[:2]), "b": {"c": jnp.asarray(x[2:]).reshape(2, 2)}}


def close(actual, expected, **kwargs):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **kwargs), actual, expected)


def test_by_hand():
    base = {"w": jnp.array([1.0, 2.0, 3.0])}
    models = [{"w": base["w"] + jnp.array(tau)} for tau in ([1.0, 0, 0], [1.0, 1.0, 0])]
    # c = sqrt(1/2), t = 2 c / (1 + c) = 0.828427, the mean of the task vectors is [1, .5, 0].
    close(model_stock(base, models), {"w": [1.828427, 2.414214, 3.0]}, rtol=1e-5)


def test_leaves_and_rows_have_ratios_of_their_own():
    base = {"w": jnp.zeros((2, 2)), "v": jnp.zeros(2), "s": jnp.zeros(())}
    taus = [
        {"w": jnp.array([[1.0, 0], [0, 1]]), "v": jnp.ones(2), "s": jnp.ones(())},
        {"w": jnp.array([[1.0, 0], [1, 0]]), "v": jnp.ones(2), "s": jnp.full((), 3.0)},
    ]
    # w: cosine 1/2, ratio 2/3; its rows: 1 and 0. v and s are parallel.
    whole, rows = model_stock(base, taus), model_stock_rows(base, taus)
    close(whole, {"w": [[2 / 3, 0], [1 / 3, 1 / 3]], "v": [1.0, 1.0], "s": 2.0}, rtol=1e-5)
    close(rows, {"w": [[1, 0], [0, 0]], "v": [1.0, 1.0], "s": 2.0}, rtol=1e-5)


STOCK = jax.jit(lambda base, models: [f(base, models) for f in (model_stock, model_stock_rows)])


@given(stacks)
def test_limits(x):
    base, *models = (tree(row) for row in x)
    for got, again in zip(STOCK(base, models), STOCK(base, models[::-1]), strict=True):
        close(got, again, atol=1e-5)
    for got in STOCK(base, [models[0]] * 3):
        close(got, models[0], atol=1e-5)
    for got in STOCK(base, [base, base, models[0]]):
        close(got, base)


def test_orthogonal_models_leave_the_base():
    base = {"w": jnp.zeros(3)}
    models = [{"w": row} for row in jnp.eye(3)]
    close(model_stock(base, models), base)


def test_for_two_models_and_three():
    # Three vectors of one length with one angle between each two of them: c = 1/2, t = 3/4.
    base, models = {"w": jnp.zeros(4)}, [{"w": 1.0 + 2 * row} for row in jnp.eye(4)[:3]]
    c = (4 + 2 + 2) / (9 + 3)
    ratio = 3 * c / (1 + 2 * c)
    close(model_stock(base, models), {"w": ratio * average(models)["w"]}, rtol=1e-5)
    close(
        model_stock(base, models[:2]),
        {"w": 2 * c / (1 + c) * average(models[:2])["w"]},
        rtol=1e-5,
    )


def test_task_vectors_that_cancel_keep_the_result_near():
    base = {"w": jnp.zeros(2)}
    opposite = [{"w": jnp.array([1.0, 0.5])}, {"w": jnp.array([-1.0, 0.0])}]
    got = model_stock(base, opposite)
    close(got, {"w": -average(opposite)["w"]}, rtol=1e-5)  # not -16 times it
    value, grad = jax.value_and_grad(lambda m: model_stock(base, [m, opposite[1]])["w"].sum())(
        {"w": jnp.array([1.0, 0.0])}
    )
    assert value == 0 and np.isfinite(grad["w"]).all()


def test_dtype_and_errors():
    base = {"w": jnp.zeros(2, jnp.bfloat16)}
    assert model_stock(base, [base, {"w": jnp.ones(2)}])["w"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="models: got 1, takes at least two"):
        model_stock(base, [base])
    with pytest.raises(ValueError, match=r"w is \(3,\) in models\[1\]"):
        model_stock(base, [base, {"w": jnp.ones(3)}])
