import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.preference import dpo

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "preference.json").read_text())
BATCH = {name: jnp.array(value) for name, value in GOLDEN["inputs"].items()}


@pytest.mark.parametrize("name", ["dpo", "dpo_beta1"])
def test_golden_batch(name):
    case = GOLDEN["losses"][name]
    loss = dpo(**BATCH, beta=case["beta"])
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss, case["per_pair"], rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), case["mean"], rtol=1e-5)
    grads = jax.grad(lambda batch: dpo(**batch, beta=case["beta"]).sum())(BATCH)
    np.testing.assert_allclose(-grads["policy_chosen"], case["d_chosen"], atol=2e-6)
    np.testing.assert_allclose(grads["policy_rejected"], case["d_rejected"], atol=2e-6)


def test_at_the_reference_and_far_from_it():
    chosen, rejected = BATCH["policy_chosen"], BATCH["policy_rejected"]
    at = dpo(chosen, rejected, chosen, rejected, beta=0.1)
    np.testing.assert_allclose(at, np.log(2), rtol=1e-6)
    # A margin of -10000 at beta 1 is a loss of 10000, and its gradient is finite.
    far = jnp.full(4, -1e4)
    value, grad = jax.value_and_grad(lambda c: dpo(c, far * 0, far * 0, far * 0, beta=1.0).sum())(
        far
    )
    np.testing.assert_allclose(value, 4e4, rtol=1e-6)
    np.testing.assert_allclose(grad, -1.0, rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="beta: got 0"):
        dpo(**BATCH, beta=0)
    with pytest.raises(ValueError, match=r"reference_chosen: got shape \(2,\)"):
        short = BATCH | {"reference_chosen": jnp.zeros(2)}
        inspect.unwrap(dpo)(**short, beta=0.1)
