"""RegMean: numbers by hand, the least-squares property, rows without inputs, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close

from kd_jax.merging.average import average
from kd_jax.merging.regmean import regmean, regmean_linear

GRAMS = [jnp.array([[4.0, 0.0], [0.0, 1.0]]) / 2, jnp.array([[1.0, 1.0], [1.0, 2.0]]) / 2]
KERNELS = [jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])]


@pytest.mark.parametrize(
    ("off_diagonal", "expected"),
    [(1.0, [0.928571, 0.357143]), (0.9, [0.909091, 0.393939]), (0.0, [0.8, 0.666667])],
)
def test_by_hand(off_diagonal, expected):
    merged = regmean_linear(KERNELS, GRAMS, off_diagonal=off_diagonal)
    np.testing.assert_allclose(merged[:, 0], expected, rtol=1e-5)


def data(rows=12, models=3, inputs=5, outputs=4):
    keys = jax.random.split(jax.random.key(0), 2)
    xs = 1.0 + jax.random.normal(keys[0], (models, rows, inputs))
    ws = jax.random.normal(keys[1], (models, inputs, outputs))
    return xs, ws, jnp.einsum("nri,nrj->nij", xs, xs) / rows


def test_nearest_to_every_model_on_its_own_inputs():
    """By NumPy's least squares, in float64, over the stacked inputs of all models."""
    xs, ws, grams = data()
    wanted = np.concatenate([np.asarray(x, np.float64) @ w for x, w in zip(xs, ws, strict=True)])
    expected = np.linalg.lstsq(np.concatenate(np.asarray(xs, np.float64)), wanted, rcond=None)[0]
    merged = regmean_linear(list(ws), list(grams), off_diagonal=1.0, ridge=0.0)
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


def test_limits():
    _, ws, grams = data()
    ws, grams = list(ws), list(grams)
    identity = [jnp.eye(5)] * 3
    np.testing.assert_allclose(regmean_linear(ws, identity), average(ws), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(regmean_linear([ws[0]] * 3, grams), ws[0], rtol=1e-5)
    np.testing.assert_allclose(regmean_linear(ws[:1], grams[:1]), ws[0], rtol=1e-5)
    # A large ridge holds every kernel at the mean; units of the inputs do not matter.
    np.testing.assert_allclose(regmean_linear(ws, grams, ridge=1e6), average(ws), atol=1e-4)
    tiny = [1e-8 * g for g in grams]
    assert_trees_close(regmean_linear(ws, tiny), regmean_linear(ws, grams), rtol=1e-4)


@pytest.mark.parametrize("off_diagonal", [0.0, 0.9, 1.0])
def test_rows_without_inputs_are_averaged(off_diagonal):
    xs, ws, _ = data()
    xs = xs.at[:, :, 1].set(0.0)
    grams = list(jnp.einsum("nri,nrj->nij", xs, xs))
    merged = regmean_linear(list(ws), grams, off_diagonal=off_diagonal)
    np.testing.assert_allclose(merged[1], ws[:, 1].mean(0), rtol=1e-4, atol=1e-6)
    assert not np.allclose(merged[0], ws[:, 0].mean(0), rtol=0.01)
    nothing = [jnp.zeros((5, 5))] * 3
    np.testing.assert_allclose(regmean_linear(list(ws), nothing), ws.mean(0), atol=1e-6)


def models_and_grams():
    xs, ws, grams = data()
    models = [
        {"dense": {"kernel": w, "bias": w[0]}, "stacked": jnp.stack([w, 2.0 * w])} for w in ws
    ]
    found = [{"dense/kernel": g, "stacked": jnp.stack([g, jnp.eye(5)])} for g in grams]
    return models, found


def test_trees_are_merged_kernel_by_kernel():
    models, grams = models_and_grams()
    merged = regmean(models, grams)
    _, ws, own = data()
    one = regmean_linear(list(ws), list(own))
    assert_trees_close(merged["dense"]["kernel"], one)
    assert_trees_close(merged["dense"]["bias"], ws[:, 0].mean(0))
    # Stacked layers are batched, each with its own matrix.
    assert_trees_close(merged["stacked"], jnp.stack([one, 2.0 * ws.mean(0)]))
    plain = regmean(models, [{"dense/kernel": g["dense/kernel"]} for g in grams])
    assert_trees_close(plain["stacked"], average(models)["stacked"])


def test_sharded_trees_and_dtypes():
    models, grams = models_and_grams()
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P(None, "data"))
    whole = NamedSharding(mesh, P())

    def place(tree):
        return jax.tree.map(lambda x: jax.device_put(x, split if x.ndim == 2 else whole), tree)

    sharded = jax.jit(regmean)([place(m) for m in models], jax.device_put(grams, whole))
    assert_trees_close(sharded, regmean(models, grams), rtol=1e-4, atol=1e-5)
    half = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), m) for m in models]
    assert {x.dtype for x in jax.tree.leaves(regmean(half, grams))} == {jnp.dtype("bfloat16")}


def test_refusals():
    models, grams = models_and_grams()
    with pytest.raises(ValueError, match="grams: got 2, takes one a model, 3"):
        regmean(models, grams[:2])
    with pytest.raises(ValueError, match=r"grams\[1\].*dense/kernel only in grams\[0\]"):
        regmean(models, [grams[0], {"stacked": grams[1]["stacked"]}, grams[2]])
    with pytest.raises(ValueError, match="got other, which the models do not have"):
        regmean(models, [{"other": jnp.eye(5)}] * 3)
    with pytest.raises(ValueError, match=r"dense/kernel is \(4, 4\), takes \[..., in, in\]"):
        regmean(models, [{"dense/kernel": jnp.eye(4)}] * 3)
    with pytest.raises(ValueError, match="dense/bias is"):
        regmean(models, [{"dense/bias": jnp.eye(4)}] * 3)
    with pytest.raises(ValueError, match=r"off_diagonal: got 1.5, takes a number in \[0, 1\]"):
        regmean(models, grams, off_diagonal=1.5)
    with pytest.raises(ValueError, match="ridge: got -1"):
        regmean(models, grams, ridge=-1.0)
