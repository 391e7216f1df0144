"""The vision models: values against Linen layers and NumPy, places, batch norm by hand."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.image_students import (
    IMAGES,
    drawn,
    has_a_rule_for_every_parameter,
    takes_images,
)

from kd_jax.models import mlp, norms, resnet, vit
from kd_jax.models.common import normals, to_float
from kd_jax.trees import flatten

RESNET = resnet.ResNetConfig(blocks=(1, 1), widths=(8, 16), channels=2, classes=5)
VIT = vit.ViTConfig(image=8, patch=4, channels=2, width=16, depth=2, heads=2, mlp=24, classes=5)
MLP = mlp.MLPConfig(inputs=128, widths=(16, 8), classes=5)
BATCH = {"inputs": IMAGES}

MODELS = {
    "mlp": (mlp.mlp(MLP), mlp.RULES),
    "batch_norm": (resnet.resnet(RESNET), resnet.RULES),
    "group_norm": (resnet.resnet(RESNET, norm=norms.group_norm(4)), resnet.RULES),
    "vit": (vit.vit(VIT), vit.RULES),
}
TAPS = {
    "mlp": {"inputs": (8, 128), "hidden_0": (8, 16), "hidden_1": (8, 8)},
    "batch_norm": {"block_0": (8, 8, 8, 8), "block_1": (8, 4, 4, 16), "pooled": (8, 16)},
    "group_norm": {"block_0": (8, 8, 8, 8), "block_1": (8, 4, 4, 16), "pooled": (8, 16)},
    "vit": {"embed": (8, 4, 16), "block_0": (8, 4, 16), "block_1": (8, 4, 16), "pooled": (8, 16)},
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def setup(name):
    model, _ = MODELS[name]
    params = jax.eval_shape(model.init, jax.random.key(0))
    return model, drawn(params), drawn(jax.eval_shape(model.state))


@every_model
def test_shapes_taps_and_u8(name):
    model, params, state = setup(name)
    run = jax.jit(lambda x: model.apply(params, {"inputs": x}, state=state, taps=TAPS[name]))
    takes_images(run, TAPS[name])


@pytest.mark.slow
@every_model
def test_add_perturbs_its_place_and_has_a_gradient(name):
    model, params, state = setup(name)
    places = TAPS[name]

    @jax.jit
    def run(add):
        return model.apply(params, BATCH, state=state, taps=places, add=add)

    zeros = {k: jnp.zeros(shape) for k, shape in places.items()}
    plain = run({})
    np.testing.assert_allclose(run(zeros).head.logits(), plain.head.logits(), atol=1e-5)
    grads = jax.grad(lambda add: run(add).head.logits()[:, 0].sum())(zeros)
    last = list(places)[-1]
    layer = params["head" if "head" in params else "layer_2"]["kernel"]
    np.testing.assert_allclose(grads[last], np.tile(layer[:, 0], (8, 1)), rtol=1e-5)
    for place, shape in places.items():
        assert np.abs(grads[place]).max() > 0
        pushed = run({place: jnp.full(shape, 0.5)})
        np.testing.assert_allclose(pushed.taps[place], plain.taps[place] + 0.5, atol=1e-5)


@every_model
def test_unknown_places_are_errors(name):
    model, params, state = setup(name)
    with pytest.raises(ValueError, match="got nowhere"):
        model.apply(params, BATCH, state=state, taps=("nowhere",))
    with pytest.raises(ValueError, match="got nowhere"):
        model.apply(params, BATCH, state=state, add={"nowhere": jnp.zeros(1)})


@every_model
def test_every_parameter_has_a_rule(name):
    has_a_rule_for_every_parameter(*MODELS[name])


def test_a_leaf_depends_on_key_path_and_shape_only():
    leaves = {"a": ((64, 32), 0.5), "b": ((64, 32), 2.0), "c": ((8,), 1.0)}
    draw = jax.jit(lambda key: normals(key, leaves))
    first, other = draw(jax.random.key(0)), draw(jax.random.key(1))
    alone = normals(jax.random.key(0), {"b": ((64, 32), 1.0)})
    np.testing.assert_allclose(first["b"], 2 * alone["b"], rtol=1e-6)
    np.testing.assert_allclose(first["a"].std(), 0.5, rtol=0.05)
    assert abs(np.corrcoef(first["a"].ravel(), first["b"].ravel())[0, 1]) < 0.1
    assert np.abs(first["c"] - other["c"]).max() > 0.1


@pytest.mark.slow
def test_initialisation():
    model = resnet.resnet(resnet.ResNetConfig(blocks=(1,), widths=(32,), channels=32))
    params = jax.jit(model.init)(jax.random.key(0))
    variance = params["block_0"]["conv_0"]["kernel"].var()
    np.testing.assert_allclose(variance, 2 / (9 * 32), rtol=0.05)
    assert (params["stem_norm"]["scale"] == 1).all()
    assert not params["stem_norm"]["bias"].any()
    assert not params["head"]["bias"].any()
    params = jax.jit(vit.vit(dataclasses.replace(VIT, width=64)).init)(jax.random.key(0))
    np.testing.assert_allclose(params["block_0"]["attn"]["q"]["kernel"].std(), 1 / 8, rtol=0.05)
    np.testing.assert_allclose(params["block_0"]["mlp"]["down"]["kernel"].var(), 1 / 24, rtol=0.1)
    np.testing.assert_allclose(params["position"]["embedding"].std(), 0.02, rtol=0.15)


def test_resnet_sizes():
    # ResNet-20 of the paper has 0.27 M parameters; the projections (option B) add 2 752.
    params = jax.eval_shape(resnet.resnet(resnet.ResNetConfig()).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 272_474


class LinenResNet(nn.Module):
    """RESNET in Linen's layers, by other names."""

    grouped: bool = False

    @nn.compact
    def __call__(self, x, train):
        def conv(x, width, side, stride, name):
            pad = side // 2
            x = nn.Conv(
                width, (side, side), stride, [(pad, pad)] * 2, use_bias=False, name=f"{name}/kernel"
            )(x)
            if self.grouped:
                return nn.GroupNorm(4, epsilon=1e-5, name=f"{name}/norm")(x)
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"{name}/norm")(x)

        x = nn.relu(conv(x, 8, 3, 1, "stem"))
        y = nn.relu(conv(x, 8, 3, 1, "block_0/conv_0"))
        x = nn.relu(x + conv(y, 8, 3, 1, "block_0/conv_1"))
        y = nn.relu(conv(x, 16, 3, 2, "block_1/conv_0"))
        y = conv(y, 16, 3, 1, "block_1/conv_1")
        x = nn.relu(conv(x, 16, 1, 2, "block_1/shortcut") + y)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def linen_names(tree):
    """Ours to Linen's: {"block_0/conv_0/norm": {...}} and so on."""
    renamed = {}
    for path, leaf in flatten(tree).items():
        *module, last = path.split("/")
        where = "/".join(module)
        if "norm" in where:
            where = where.replace("norm_", "conv_").removesuffix("_norm") + "/norm"
        elif where != "head":
            where += "/kernel"
        renamed.setdefault(where, {})[last] = leaf
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_resnet_equals_linen(name, train):
    model, params, state = setup(name)
    got = jax.jit(lambda: model.apply(params, BATCH, state=state, train=train))()
    expected, new = LinenResNet(grouped=name == "group_norm").apply(
        {"params": linen_names(params), "batch_stats": linen_names(state)},
        IMAGES.astype(np.float32) / 255,
        train,
        mutable=["batch_stats"],
    )
    np.testing.assert_allclose(got.head.logits(), expected, rtol=1e-4, atol=1e-5)
    for where, held in linen_names(got.state).items():
        for k, value in held.items():
            np.testing.assert_allclose(
                value, new["batch_stats"][where][k], rtol=1e-4, atol=1e-6, err_msg=f"{where}/{k}"
            )
    if name == "group_norm":
        assert got.state == {}
        assert model.state() == {}


def test_batch_norm_by_hand():
    norm = norms.batch_norm(momentum=0.75, eps=0.0)
    x = jnp.array([1.0, 2, 3, 6]).reshape(2, 2, 1, 1)  # mean 3, variance 3.5
    held = {"mean": jnp.array([1.0]), "var": jnp.array([4.0])}
    y, new = norm.apply(x, held, True)
    np.testing.assert_allclose(y.ravel(), np.array([-2, -1, 0, 3]) / np.sqrt(3.5), rtol=1e-6)
    np.testing.assert_allclose(new["mean"], [0.75 * 1 + 0.25 * 3])
    np.testing.assert_allclose(new["var"], [0.75 * 4 + 0.25 * 3.5])
    y, same = norm.apply(x, held, False)
    np.testing.assert_allclose(y.ravel(), [0.0, 0.5, 1.0, 2.5])
    np.testing.assert_array_equal(same["mean"], held["mean"])
    np.testing.assert_array_equal(same["var"], held["var"])


def test_batch_norm_couples_rows_when_training_only():
    """Documented: rows of weight 0 count in the batch's statistics."""
    model, params, state = setup("batch_norm")
    other = np.concatenate([IMAGES[:4], 255 - IMAGES[4:]])
    run = jax.jit(lambda x: model.apply(params, {"inputs": x}, state=state, train=True))
    a, b = run(IMAGES), run(other)
    assert np.abs(a.head.logits()[:4] - b.head.logits()[:4]).max() > 1e-3


def test_batch_norm_asks_for_its_statistics():
    model, params, _ = setup("batch_norm")
    with pytest.raises(ValueError, match=r"stem_norm/mean only in model.state\(\)"):
        model.apply(params, BATCH)
    with pytest.raises(ValueError, match="only in state"):
        MODELS["group_norm"][0].apply(params, BATCH, state=model.state())


def test_vit_equals_numpy():
    _, params, _ = setup("vit")
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    images = IMAGES / 255.0

    def dense(w, x):
        return x @ w["kernel"] + w["bias"]

    def norm(w, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * w[
            "scale"
        ] + w["bias"]

    cuts = [(slice(r, r + 4), slice(c, c + 4)) for r in (0, 4) for c in (0, 4)]
    x = np.stack([images[:, r, c].reshape(8, -1) for r, c in cuts], axis=1)
    x = dense(p["embed"], x) + p["position"]["embedding"]
    for i in range(2):
        block = p[f"block_{i}"]
        y = norm(block["attn_norm"], x)
        q, k, v = (dense(block["attn"][n], y) for n in "qkv")
        mixed = np.zeros_like(q)
        for h in (slice(0, 8), slice(8, 16)):
            scores = np.exp(q[..., h] @ k[..., h].transpose(0, 2, 1) / np.sqrt(8))
            mixed[..., h] = scores / scores.sum(-1, keepdims=True) @ v[..., h]
        x = x + dense(block["attn"]["o"], mixed)
        y = dense(block["mlp"]["up"], norm(block["mlp_norm"], x))
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + dense(block["mlp"]["down"], y)
    expected = dense(p["head"], norm(p["final_norm"], x).mean(1))
    got = jax.jit(vit.vit(VIT).apply)(params, BATCH).head.logits()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_float(jnp.zeros((2, 8, 8))), r"inputs: got shape \(2, 8, 8\)"),
        (lambda: to_float(jnp.zeros((1, 2, 2, 1), jnp.int32)), "inputs: got int32"),
        (lambda: vit.ViTConfig(image=30), "patch: got 4"),
        (lambda: vit.ViTConfig(heads=5), "heads: got 5"),
        (lambda: resnet.ResNetConfig(blocks=(1,)), "blocks, widths"),
        (lambda: resnet.ResNetConfig(classes=0), "sizes"),
        (
            lambda: norms.group_norm(3).apply(jnp.zeros((1, 2, 2, 8)), {}, True),
            "groups: got 3, takes a divisor of the 8 channels",
        ),
        (
            lambda: MODELS["vit"][0].apply(setup("vit")[1], {"inputs": jnp.zeros((1, 4, 8, 2))}),
            r"inputs: got images \(4, 8, 2\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
