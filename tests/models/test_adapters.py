"""Adapters: Linen and NNX modules with BatchNorm and dropout, against their own libraries."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kd_jax.models.adapters import from_linen, from_nnx
from kd_jax.trees import flatten
from kd_jax.types import Logits, ModelOutput

X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
BATCH = {"inputs": X}
KEY = jax.random.key(3)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = self.perturb("hidden", x)
        self.sow("intermediates", "hidden", x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.perturb("hidden", self.norm(self.first(x)))
        self.sow(nnx.Intermediate, "hidden", x)
        return self.last(self.drop(x))


MODELS = {"linen": from_linen(Linen(), X), "nnx": from_nnx(Nnx)}
PATHS = {
    "linen": ("Dense_0", "BatchNorm_0", "Dense_1", "batch_stats/BatchNorm_0/"),
    "nnx": ("first", "norm", "last", "norm/"),
}


@pytest.fixture(params=MODELS, scope="module")
def adapted(request):
    model = MODELS[request.param]
    return model, jax.jit(model.init)(jax.random.key(0)), model.state(), PATHS[request.param]


def by_hand(params, names, x, mean, var):
    first, norm, last, _ = names
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    x = x @ flat[f"{first}/kernel"] + flat[f"{first}/bias"]
    mean, var = (x.mean(0), x.var(0)) if mean is None else (mean, var)
    normed = (x - mean) / np.sqrt(var + 1e-5) * flat[f"{norm}/scale"] + flat[f"{norm}/bias"]
    return x, normed, normed @ flat[f"{last}/kernel"] + flat[f"{last}/bias"]


def test_evaluation_uses_the_running_statistics(adapted):
    model, params, state, names = adapted
    mean, var = np.linspace(-1, 1, 8, dtype=np.float32), np.linspace(0.5, 2, 8, dtype=np.float32)
    assert sorted(flatten(state)) == [names[3] + "mean", names[3] + "var"]
    moved = jax.tree.map(lambda x: jnp.asarray(mean if x[0] == 0 else var), state)
    out = jax.jit(lambda p, s: model.apply(p, BATCH, state=s, taps=("hidden",)))(params, moved)
    _, hidden, logits = by_hand(params, names, X, mean, var)
    assert isinstance(out.head, Logits)
    np.testing.assert_allclose(out.head.logits(), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.taps["hidden"], hidden, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, out.state, moved)


def test_training_updates_the_statistics_and_draws_from_the_key(adapted):
    model, params, state, names = adapted

    @jax.jit
    def run(params, key):
        def loss(params):
            out = model.apply(params, BATCH, state=state, key=key, train=True, taps=("hidden",))
            return jnp.sum(jnp.sin(out.head.logits())), out

        return jax.grad(loss, has_aux=True)(params)

    grads, out = run(params, KEY)
    raw, hidden, logits = by_hand(params, names, X, None, None)
    found = flatten(out.state)
    np.testing.assert_allclose(found[names[3] + "mean"], 0.1 * raw.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[names[3] + "var"], 0.9 + 0.1 * raw.var(0), rtol=1e-4)
    np.testing.assert_allclose(out.taps["hidden"], hidden, rtol=1e-3, atol=1e-4)
    assert np.abs(out.head.logits() - logits).max() > 0.05  # dropout
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert np.abs(flatten(grads)[f"{names[0]}/kernel"]).max() > 0
    same, other = run(params, KEY)[1], run(params, jax.random.key(4))[1]
    np.testing.assert_array_equal(same.head.z, out.head.z)
    assert np.abs(other.head.z - out.head.z).max() > 0.05
    assert jax.tree.structure(out.state) == jax.tree.structure(state)


def test_initialisation_depends_on_the_key_and_can_be_abstract(adapted):
    model, params, _, names = adapted
    shapes = jax.eval_shape(model.init, KEY)
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    other = flatten(jax.jit(model.init)(KEY))
    assert np.abs(other[f"{names[0]}/kernel"] - flatten(params)[f"{names[0]}/kernel"]).max() > 0.01


def test_unknown_places_are_errors(adapted):
    model, params, state, _ = adapted
    for argument, value in (("taps", ("nowhere",)), ("add", {"nowhere": 0.0})):
        with pytest.raises(ValueError, match=f"{argument}: got nowhere, takes"):
            model.apply(params, BATCH, state=state, **{argument: value})


def test_additions(adapted):
    model, params, state, names = adapted
    delta = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    kernel = params[names[2]]["kernel"]

    def logits(delta):
        return model.apply(params, BATCH, state=state, add={"hidden": delta}).head.logits()

    plain = model.apply(params, BATCH, state=state).head.logits()
    np.testing.assert_allclose(logits(delta) - plain, delta @ kernel, rtol=1e-3, atol=1e-5)
    grad = jax.jit(jax.grad(lambda delta: logits(delta).sum()))(delta)
    np.testing.assert_allclose(grad, np.tile(kernel.sum(1), (6, 1)), rtol=1e-4, atol=1e-6)


class Bare(nn.Module):
    """Takes no train argument and makes its own output."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(4)(x)
        return ModelOutput(Logits(nn.Dense(2)(hidden)), {"hidden": hidden})


def test_a_linen_module_with_its_own_output_and_arguments():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    model = from_linen(Bare(), shape, arguments=lambda train: {})
    params = model.init(jax.random.key(0))
    out = model.apply(params, BATCH, train=True)
    assert model.state() == {} and out.state == {}
    assert out.head.z.shape == (6, 2) and out.taps["hidden"].shape == (6, 4)


def test_an_nnx_module_that_draws_needs_a_key_to_train():
    model = MODELS["nnx"]
    with pytest.raises(ValueError, match="key: got None"):
        model.apply(model.init(KEY), BATCH, state=model.state(), train=True)
