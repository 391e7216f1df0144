import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.types import Factored

WEIGHTS = jnp.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]])


def test_sum_over_nonzero_weights_which_are_only_a_mask():
    lp = -jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(sequence_log_probs(lp, WEIGHTS), [-3.0, -13.0, 0.0])
    assert sequence_log_probs(lp.astype(jnp.bfloat16), WEIGHTS).dtype == jnp.float32


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf, 123.0])
def test_what_stands_in_padding_reaches_neither_value_nor_gradient(bad):
    lp = -jnp.arange(12.0).reshape(3, 4)
    dirty = jnp.where(WEIGHTS == 0, bad, lp)
    f = jax.value_and_grad(lambda lp: (sequence_log_probs(lp, WEIGHTS) ** 2).sum())
    for clean, other in zip(f(lp), f(dirty), strict=True):
        np.testing.assert_array_equal(clean, other)


def test_prompt_padding_and_ignored_labels_of_a_model_change_nothing():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((9, 5)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 9, (3, 4)), jnp.int32)

    @jax.jit
    def total(hidden, targets):
        lp = token_log_probs(Factored(hidden, head), targets, chunk=3)
        return sequence_log_probs(lp, WEIGHTS)

    masked = WEIGHTS == 0
    expected = total(hidden, targets)
    for other in (jnp.where(masked, -100, targets), jnp.where(masked, 0, targets)):
        np.testing.assert_array_equal(total(hidden, other), expected)
    moved = jnp.where(masked[..., None], 50.0, hidden)
    np.testing.assert_array_equal(total(moved, targets), expected)
    np.testing.assert_allclose(expected[2], 0.0)
    grad = jax.jit(jax.grad(lambda h: total(h, targets).sum()))(moved)
    np.testing.assert_array_equal(grad[masked], 0.0)
    assert (jnp.abs(grad[~masked]).sum(-1) > 0).all()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"weights: got shape \(3, 4\)"):
        inspect.unwrap(sequence_log_probs)(jnp.zeros((3, 1)), WEIGHTS)
