"""The mixture of experts: against a loop over tokens, the dense form, and itself on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import TABLE, on_mesh, shard_tree
from kd_jax.models import moe
from kd_jax.models.moe import RULES, expert_load, load_balance, moe_mlp, route
from kd_jax.types import Term, weighted_sum

EXPERTS, WIDTH, HIDDEN = 8, 4, 6
NAMES = ("router", "gate", "up", "down")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def made(dtype=np.float32, batch=8, length=4):
    shapes = {
        "router": (WIDTH, EXPERTS),
        "gate": (EXPERTS, WIDTH, HIDDEN),
        "up": (EXPERTS, WIDTH, HIDDEN),
        "down": (EXPERTS, HIDDEN, WIDTH),
    }
    layer = {
        name: {"kernel": draw(*shape, seed=i) / np.float32(np.sqrt(shape[-2]))}
        for i, (name, shape) in enumerate(shapes.items(), start=1)
    }
    x = jnp.asarray(draw(batch, length, WIDTH), jnp.bfloat16)  # the same values in every dtype
    return layer, x.astype(dtype)


def by_hand(layer, x, per_token, renormalise=True):
    """Token by token in float64."""
    router, gate, up, down = (layer[name]["kernel"].astype(np.float64) for name in NAMES)
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:2]):
        token = np.asarray(x[place], np.float64)
        p = np.exp(token @ router)
        p /= p.sum()
        best = np.argsort(-p, kind="stable")[:per_token]
        whole = p[best].sum() if renormalise else 1.0
        for e in best:
            z = token @ gate[e]
            y[place] += p[e] / whole * ((z / (1 + np.exp(-z)) * (token @ up[e])) @ down[e])
    return y


def dense(layer, x, per_token):
    """All experts for all tokens, most of them times zero."""
    logits = x @ layer["router"]["kernel"]
    weights, chosen = route(logits, per_token=per_token)
    spread = jnp.sum(jax.nn.one_hot(chosen, EXPERTS) * weights[..., None], axis=-2)
    gate, up = (
        jnp.einsum("btd,edf->btef", x, layer[name]["kernel"].astype(x.dtype))
        for name in ("gate", "up")
    )
    down = layer["down"]["kernel"].astype(x.dtype)
    return jnp.einsum("btef,efd,bte->btd", jax.nn.silu(gate) * up, down, spread)


def objective(layer, x, mixture):
    y = mixture(layer, x)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), y


def plain(layer, x):
    return moe_mlp(layer, x, per_token=2)[0]


def graded(mixture):
    """(layer, x) -> ((loss, y), gradients of layer and x)."""
    return jax.value_and_grad(
        functools.partial(objective, mixture=mixture), argnums=(0, 1), has_aux=True
    )


ALONE = jax.jit(graded(plain))


@functools.cache
def alone():
    return jax.device_get(ALONE(*made()))


def assert_near(got, wanted, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("per_token, renormalise", [(1, False), (2, True), (EXPERTS, False)])
def test_values(per_token, renormalise):
    layer, x = made(batch=2)
    run = functools.partial(moe_mlp, per_token=per_token, renormalise=renormalise)
    y, logits = jax.jit(run)(layer, x)
    assert_near(y, by_hand(layer, x, per_token, renormalise))
    assert_near(logits, x @ layer["router"]["kernel"])


def test_gradients_equal_those_of_the_dense_form():
    layer, x = made()
    mixture = functools.partial(dense, per_token=2)
    assert_near(alone(), jax.jit(graded(mixture))(layer, x), rtol=3e-5)


def test_of_equal_experts_the_first_are_taken():
    weights, chosen = route(jnp.zeros((1, 1, EXPERTS)), per_token=3)
    np.testing.assert_array_equal(chosen[0, 0], [0, 1, 2])
    np.testing.assert_allclose(weights[0, 0], 1 / 3, rtol=1e-6)


def test_the_order_of_experts_does_not_matter():
    layer, x = made()
    order = np.random.default_rng(5).permutation(EXPERTS)
    turned = {name: {"kernel": layer[name]["kernel"][order]} for name in ("gate", "up", "down")}
    turned["router"] = {"kernel": layer["router"]["kernel"][:, order]}
    assert_near(jax.jit(plain)(turned, x), alone()[0][1])


def test_a_token_does_not_see_the_others():
    """Not their values, not that they all want one expert, not how many there are."""
    layer, x = made()
    (_, y), (_, to_x) = alone()
    crowd = x.at[:, 1:].set(100 * x[0, 0][None, None])
    (_, other), (_, other_to_x) = ALONE(layer, crowd)
    assert_near(other[:, 0], y[:, 0])
    assert_near(other_to_x[:, 0], to_x[:, 0])
    assert_near(jax.jit(plain)(layer, x[:1, :1]), y[:1, :1])


MESHES = {
    "experts and tensor": (MeshConfig(data=1, expert=4, tensor=2), TABLE),
    "rows everywhere": (MeshConfig(data=2, fsdp=2, expert=2), TABLE),
    "length": (MeshConfig(data=2, expert=4), {**TABLE, "batch": "data", "length": "expert"}),
    "whole rows": (MeshConfig(data=4, expert=2), {**TABLE, "batch": "data"}),
}


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_equal_one(name):
    config, table = MESHES[name]
    mesh = make_mesh(config)
    layer, x = made()

    rules = [(pattern.removeprefix("layers/mlp/"), axes[1:]) for pattern, axes in RULES]
    spread = jax.device_put(layer, shard_tree(layer, rules, mesh, table=table))
    axes = PartitionSpec(table["batch"], table["length"])
    rows = jax.device_put(x, NamedSharding(mesh, axes))
    got = jax.jit(on_mesh(graded(plain), mesh, table=table))(spread, rows)
    assert_near(got, alone(), rtol=3e-5)


def test_a_batch_smaller_than_the_mesh():
    mesh = make_mesh(MeshConfig(data=2, expert=4))
    layer, x = made(batch=1)
    everywhere = NamedSharding(mesh, PartitionSpec())
    got = jax.jit(on_mesh(plain, mesh))(*jax.device_put((layer, x), everywhere))
    assert_near(got, by_hand(layer, x, 2))


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


@pytest.mark.parametrize(
    "config, rows, count",
    [
        (MeshConfig(data=8), 2 * 4, 9),
        (MeshConfig(data=1, expert=8), 1 * 4, 12),  # those of the forward pass again
        (None, 2 * 8 * 4, 9),
    ],
    ids=["data", "an expert a device", "one device"],
)
def test_only_chosen_experts_compute(config, rows, count):
    """Products have k rows for each token of a device, and nothing is [tokens, E, F]."""
    f = graded(plain) if config is None else on_mesh(graded(plain), make_mesh(config))
    equations = list(_equations(jax.make_jaxpr(f)(*made()).jaxpr))
    products = [e for e in equations if e.primitive.name == "ragged_dot_general"]
    assert len(products) == count
    assert {e.invars[0].aval.shape[0] for e in products} == {rows}
    if config is None:
        kernels = EXPERTS * WIDTH * HIDDEN
        sizes = {v.aval.size for e in equations for v in e.outvars}
        assert max(sizes) <= max(kernels, rows * max(HIDDEN, EXPERTS)) < 8 * 4 * EXPERTS * HIDDEN


@pytest.mark.slow
def test_sixteen_bits():
    """Products in bfloat16; the router, and gradients of float32 kernels, in float32."""
    layer, x = made(jnp.bfloat16)
    mesh = make_mesh(MeshConfig(data=1, expert=4, tensor=2))
    held = jax.device_put((layer, x), NamedSharding(mesh, PartitionSpec()))
    (_, y), grads = jax.jit(on_mesh(graded(plain), mesh))(*held)
    assert y.dtype == grads[1].dtype == jnp.bfloat16
    assert_near((y, grads), (alone()[0][1], alone()[1]), rtol=0.03)
    _, (whole, _) = ALONE(layer, x)
    for grad in jax.tree.leaves((grads[0], whole)):
        assert grad.dtype == jnp.float32
        assert np.mean(np.asarray(grad.astype(jnp.bfloat16), np.float32) != grad) > 0.5
    logits = jax.jit(functools.partial(moe_mlp, per_token=2))(layer, x)[1]
    assert_near(logits, x.astype(jnp.float32) @ layer["router"]["kernel"])


@jax.custom_vjp
def spoilt(x, used):
    return jnp.where(jnp.arange(len(x))[:, None] < used, x, jnp.nan)


spoilt.defvjp(lambda x, used: (spoilt(x, used), used), lambda used, g: (spoilt(g, used), None))


def test_rows_past_the_last_expert_are_never_read(monkeypatch):
    """A TPU leaves them undefined, in products and in gradients."""
    grouped = moe._grouped

    def undefined(x, kernels, sizes):
        return spoilt(grouped(spoilt(x, sizes.sum()), kernels, sizes), sizes.sum())

    monkeypatch.setattr(moe, "_grouped", undefined)
    mesh = make_mesh(MeshConfig(data=1, expert=2), jax.devices()[:2])
    held = jax.device_put(made(), NamedSharding(mesh, PartitionSpec()))
    assert_near(jax.jit(on_mesh(graded(plain), mesh))(*held), alone(), rtol=3e-5)


def test_wide_products_can_be_kept_for_the_backward_pass():
    def products(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        jaxpr = jax.make_jaxpr(graded(jax.checkpoint(plain, policy=policy)))(*made()).jaxpr
        return sum(e.primitive.name == "ragged_dot_general" for e in _equations(jaxpr))

    assert products() - products("gate_up") == 2


def test_the_load_and_the_loss_that_evens_it():
    logits = jnp.asarray(draw(4, 5, EXPERTS))
    weights = jnp.asarray(np.random.default_rng(1).integers(0, 2, (4, 5)), jnp.float32)
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    counted, load, mean = np.asarray(weights) > 0, np.zeros(EXPERTS), np.zeros(EXPERTS)
    for place in zip(*np.nonzero(counted), strict=True):
        load[np.argsort(-p[place])[:2]] += 1 / (2 * counted.sum())
        mean += p[place] / counted.sum()

    loads = jax.jit(functools.partial(expert_load, per_token=2))
    term = loads(logits, weights)
    np.testing.assert_allclose(term.value, load, rtol=1e-6)
    np.testing.assert_allclose(term.value.sum(), 1, rtol=1e-6)
    halves = [loads(logits[i::2], weights[i::2]) for i in range(2)]
    summed = Term(*(a + b for a, b in zip(halves[0][:2], halves[1][:2], strict=True)))
    np.testing.assert_allclose(summed.value, load, rtol=1e-6)

    def loss(logits):
        f = expert_load(logits, weights, per_token=2).value
        return weighted_sum(load_balance(logits, f), weights).value

    value, grad = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, EXPERTS * np.sum(load * mean), rtol=1e-5)
    # d/dz of E sum f_e p_e / n is E p_i (f_i - sum f p) / n: f is held.
    inner = np.sum(p * load, -1, keepdims=True)
    wanted = EXPERTS * p * (load - inner) * counted[..., None] / counted.sum()
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-7)
    even = load_balance(logits, jnp.full(EXPERTS, 1 / EXPERTS))
    np.testing.assert_allclose(even, 1, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"per_token": 0}, "per_token: got 0, takes 1 to 8"),
        ({"per_token": 9}, "per_token: got 9, takes 1 to 8"),
        ({"x": jnp.zeros((2, WIDTH))}, r"x, gate/kernel: got shapes \(2, 4\)"),
        ({"x": jnp.zeros((2, 3, 5))}, r"router/kernel: got shape \(4, 8\), takes \(5, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    layer, x = made()
    with pytest.raises(ValueError, match=message):
        moe_mlp(**{"layer": layer, "x": x, "per_token": 2, **change})
