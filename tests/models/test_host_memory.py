"""Frozen weights in the host's memory: the same numbers, one layer at a time on the device."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import on_host, on_mesh, shard_tree, with_shardings
from kd_jax.losses.streaming import token_forward_kl
from kd_jax.models import adapters, layout, lora, mlp, norms, resnet, sampler, vit
from kd_jax.models.decoder import DecoderConfig, decoder, rules
from kd_jax.models.parts import fetched
from kd_jax.trees import flatten

TINY = DecoderConfig(vocab=64, width=32, depth=3, heads=4, kv_heads=2, head_dim=8, mlp=48)
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 12)).astype(np.int32)
REPLICATED = ((".*", ()),)


def drawn(tree):
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda x: (0.2 * draw(x.shape)).astype(np.float32), tree)


def moved(params, rules=REPLICATED, mesh=None):
    """The weights on a mesh, as launch places what a training keeps in host memory."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    there = on_host(with_shardings(params, shard_tree(params, rules, mesh)))
    found = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, there)
    kinds = {path: x.sharding.memory_kind for path, x in flatten(found).items()}
    assert "pinned_host" in kinds.values()
    return found


@functools.cache
def weights():
    return drawn(jax.eval_shape(decoder(TINY).init, jax.random.key(0)))


def distil(config):
    """The gradient of a student to a frozen teacher of the same shape."""

    def loss(student, teacher):
        ours, theirs = (
            decoder(config).apply(params, {"inputs": TOKENS}).head for params in (student, teacher)
        )
        return token_forward_kl(ours, theirs, chunk=4).mean()

    return jax.value_and_grad(loss)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_a_frozen_decoder(scan):
    """On a mesh of eight devices, a shard of each matrix in each one's host memory."""
    config = dataclasses.replace(TINY, scan=scan)
    student = weights() if scan else layout.unstack(weights())
    teacher = jax.tree.map(lambda x: 1.5 * x, student)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    there = moved(teacher, rules(config), mesh)
    got = jax.jit(on_mesh(distil(config), mesh))(student, there)
    close(got, jax.jit(distil(config))(student, teacher))


def test_one_layer_at_a_time():
    """Every fetch is of a layer's matrix or of a table, none of a stack of layers."""
    jaxpr = str(jax.make_jaxpr(distil(TINY))(weights(), moved(weights())))
    fetches = [line for line in jaxpr.splitlines() if "= device_put[" in line]
    assert len(fetches) == 9  # seven matrices of a layer, once a layer; embedding and head
    assert "f32<host>[3,32,48]" in jaxpr
    assert not any("[3," in line for line in fetches)


def test_gradients_through_a_frozen_decoder():
    """Into a prompt: each layer is fetched once more in the backward pass, none is kept."""

    def loss(prompt, params):
        out = decoder(TINY).apply(params, {"inputs": TOKENS}, add={"embed": prompt})
        return jnp.sin(out.head.logits()).sum()

    prompt = np.zeros((1, 1, 32), np.float32)
    grad = jax.grad(loss)
    close(jax.jit(grad)(prompt, moved(weights())), jax.jit(grad)(prompt, weights()))
    jaxpr = str(jax.make_jaxpr(grad)(prompt, moved(weights())))
    assert "f32[3,32,48]" not in jaxpr and jaxpr.count("= device_put[") == 16


def test_lora_and_sampling():
    tree = drawn(
        jax.eval_shape(
            lambda: lora.init(jax.random.key(0), weights(), "layers/attn/[qv]/kernel", rank=2)
        )
    )

    def run(base):
        attached = lora.attach(base, tree, alpha=2)
        lengths = jnp.full(4, 12, jnp.int32)
        key = jax.random.key(0)
        return sampler.generate(TINY, attached, jnp.asarray(TOKENS), lengths, key, max_new=3)

    np.testing.assert_array_equal(jax.jit(run)(moved(weights()))[0], jax.jit(run)(weights())[0])


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(5)(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(128, 5, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 2)).astype(np.float32)
MODELS = {
    "mlp": lambda: mlp.mlp(mlp.MLPConfig(inputs=128, widths=(8,), classes=5)),
    "resnet": lambda: resnet.resnet(
        resnet.ResNetConfig(blocks=(1,), widths=(8,), channels=2, classes=5),
        norm=norms.group_norm(4),
    ),
    "vit": lambda: vit.vit(
        vit.ViTConfig(image=8, channels=2, width=16, depth=1, heads=2, mlp=24, classes=5)
    ),
    "linen": lambda: adapters.from_linen(Linen(), IMAGES),
    "nnx": lambda: adapters.from_nnx(Nnx),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_other_models(name):
    model = MODELS[name]()
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    run = jax.jit(lambda params: model.apply(params, {"inputs": IMAGES}).head.logits())
    np.testing.assert_allclose(run(moved(params)), run(params), rtol=1e-5, atol=1e-5)


def test_what_is_on_the_device_is_left_alone():
    tree = {"a": jnp.ones(3), "b": np.ones(3)}
    assert all(fetched(tree)[name] is tree[name] for name in tree)
