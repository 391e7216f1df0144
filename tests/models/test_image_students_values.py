"""Mixer, MobileNet, ShuffleNet and wide ResNets: values against Linen and NumPy, eight devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.image_students import FLOATS, IMAGES, MODELS, setup

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import batch_sharding, on_mesh, shard_tree
from kd_jax.trees import flatten

pytestmark = pytest.mark.slow  # all together

CONVOLUTIONAL = ["mobilenet", "shufflenet", "wide"]


class Linen(nn.Module):
    """The convolutional models written out in Linen's layers, by the same paths."""

    net: str

    @nn.compact
    def __call__(self, x, train):
        def conv(path, x, width, side=1, stride=1, groups=1):
            pad = [(side // 2, side // 2)] * 2
            size = (side, side)
            layer = nn.Conv(width, size, stride, pad, 1, 1, groups, use_bias=False, name=path)
            return layer(x)

        def norm(path, x):
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=path)(x)

        def both(path, x, *sizes):
            return norm(f"{path}_norm", conv(path, x, *sizes))

        x = {"mobilenet": _mobilenet, "shufflenet": _shufflenet, "wide": _wide}[self.net](
            x, conv, norm, both
        )
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def _mobilenet(x, conv, norm, both):
    x = nn.relu6(both("stem", x, 8, 3, 2))
    y = nn.relu6(both("block_0/depthwise", x, 8, 3, 1, 8))
    x = x + both("block_0/project", y, 8)
    y = nn.relu6(both("block_1/expand", x, 16))
    y = nn.relu6(both("block_1/depthwise", y, 16, 3, 2, 16))
    x = both("block_1/project", y, 16)
    y = nn.relu6(both("block_2/expand", x, 32))
    y = nn.relu6(both("block_2/depthwise", y, 32, 3, 1, 32))
    x = x + both("block_2/project", y, 16)
    return nn.relu6(both("last", x, 24))


def _shufflenet(x, conv, norm, both):
    def joined(kept, other):
        """Channel 0 of the one, 0 of the other, 1 of the one, ..."""
        return jnp.stack([kept, other], axis=-1).reshape(*kept.shape[:-1], -1)

    def other(name, x, half, stride):
        x = nn.relu(both(f"{name}/in", x, half))
        x = both(f"{name}/depthwise", x, half, 3, stride, half)
        return nn.relu(both(f"{name}/out", x, half))

    x = nn.relu(both("stem", x, 8, 3))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    kept = both("block_0/pass_depthwise", x, 8, 3, 2, 8)
    x = joined(nn.relu(both("block_0/pass_out", kept, 8)), other("block_0", x, 8, 2))
    x = joined(x[..., :8], other("block_1", x[..., 8:], 8, 1))
    kept = both("block_2/pass_depthwise", x, 16, 3, 2, 16)
    x = joined(nn.relu(both("block_2/pass_out", kept, 12)), other("block_2", x, 12, 2))
    return nn.relu(both("last", x, 32))


def _wide(x, conv, norm, both):
    x = conv("stem", x, 16, 3)
    a = nn.relu(norm("block_0/norm_0", x))
    y = conv("block_0/conv_0", a, 16, 3)
    x = x + conv("block_0/conv_1", nn.relu(norm("block_0/norm_1", y)), 16, 3)
    for name, width in (("block_1", 32), ("block_2", 64)):
        a = nn.relu(norm(f"{name}/norm_0", x))
        y = conv(f"{name}/conv_0", a, width, 3, 2)
        y = conv(f"{name}/conv_1", nn.relu(norm(f"{name}/norm_1", y)), width, 3)
        x = conv(f"{name}/shortcut", a, width, 1, 2) + y
    return nn.relu(norm("final_norm", x))


def linen_names(tree):
    """{"block_0/in": {"kernel": ...}} and so on."""
    renamed = {}
    for path, leaf in flatten(tree).items():
        where, last = path.rsplit("/", 1)
        renamed.setdefault(where, {})[last] = leaf
    return renamed


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_values_and_statistics_equal_linen(name, train):
    params, state, run = setup(name)
    got = run(FLOATS, {}, train=train)
    variables = {"params": linen_names(params), "batch_stats": linen_names(state)}
    linen = functools.partial(Linen(name).apply, train=train, mutable=["batch_stats"])
    expected, new = jax.jit(linen)(variables, FLOATS)
    np.testing.assert_allclose(got.head.logits(), expected, rtol=1e-4, atol=1e-5)
    assert set(flatten(got.state)) == set(flatten(state))
    for where, held in linen_names(got.state).items():
        for k, value in held.items():
            wanted = new["batch_stats"][where][k]
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6, err_msg=where)


def test_mixer_equals_numpy():
    params, _, run = setup("mixer")
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def dense(w, x):
        return x @ w["kernel"] + w["bias"]

    def norm(w, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w["scale"] + w["bias"]

    def perceptron(w, x):
        y = dense(w["up"], x)
        return dense(w["down"], 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))))

    cuts = [(slice(r, r + 4), slice(c, c + 4)) for r in (0, 4) for c in (0, 4)]
    x = np.stack([IMAGES[:, r, c].reshape(8, -1) / 255.0 for r, c in cuts], axis=1)
    x = dense(p["embed"], x)
    for i in range(2):
        block = p[f"block_{i}"]
        y = norm(block["patches_norm"], x).transpose(0, 2, 1)
        x = x + perceptron(block["patches"], y).transpose(0, 2, 1)
        x = x + perceptron(block["channels"], norm(block["channels_norm"], x))
    expected = dense(p["head"], norm(p["final_norm"], x).mean(1))
    np.testing.assert_allclose(run(IMAGES, {}).head.logits(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mixer", "mobilenet"])
def test_eight_devices_equal_one(name):
    """Logits, gradient and statistics of a training pass, weights and rows split."""
    model, rules = MODELS[name]
    params, state, _ = setup(name)

    def loss(params, images):
        out = model.apply(params, {"inputs": images}, state=state, train=True)
        return jnp.square(out.head.logits()).mean(), out.state

    step = jax.value_and_grad(loss, has_aux=True)
    alone = jax.jit(step)(params, FLOATS)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    where = shard_tree(jax.eval_shape(lambda: params), rules, mesh)
    split = jax.device_put(params, where)
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(split))
    rows = jax.device_put(FLOATS, batch_sharding(mesh))
    together = jax.jit(on_mesh(step, mesh))(split, rows)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * max(np.abs(b).max(), 0.1))
