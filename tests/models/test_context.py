"""Sequences split over devices: the same numbers, and nothing gathered but keys and values."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import batch_sharding, on_mesh, shard_tree
from kd_jax.losses.streaming import token_log_probs
from kd_jax.models import splash
from kd_jax.models.attention import dot_product_attention
from kd_jax.models.decoder import DecoderConfig, decoder, rules

TINY = DecoderConfig(vocab=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
ROWS, LENGTH, CHUNK = 4, 24, 12


@functools.cache
def inputs(config):
    """Weights away from zero, and packed rows with padding."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (0.2 * draw.standard_normal(x.shape)).astype(np.float32),
        jax.eval_shape(decoder(config).init, jax.random.key(0)),
    )
    segments = np.repeat([[1, 2, 3, 0], [1, 1, 2, 2], [1, 2, 2, 2], [1, 0, 0, 0]], 6, axis=1)
    batch = {
        "inputs": draw.integers(0, config.vocab, (ROWS, LENGTH)).astype(np.int32),
        "targets": draw.integers(0, config.vocab, (ROWS, LENGTH)).astype(np.int32),
        "segments": segments.astype(np.int32),
    }
    return params, params | {"final_norm": {"scale": 1.1 * params["final_norm"]["scale"]}}, batch


def gradients(config):
    """NPO's forget term (arXiv 2404.05868) and a supervised one, over a policy and a reference."""

    def log_probs(params, batch):
        head = decoder(config).apply(params, batch).head
        lp = token_log_probs(head, batch["targets"], chunk=CHUNK)
        return lp * (batch["segments"] > 0)

    def loss(params, reference, batch):
        ours, theirs = log_probs(params, batch), log_probs(reference, batch)
        forget = 2 / 0.1 * jax.nn.softplus(0.1 * (ours - theirs).sum(1)).mean()
        return forget - ours.sum() / 100

    return jax.value_and_grad(loss)


def compiled(config, mesh):
    """The step on a mesh and its arguments, placed as launch places them."""
    params, reference, batch = inputs(config)
    placed = shard_tree(params, rules(config), mesh)
    where = (placed, placed, batch_sharding(mesh))
    step = jax.jit(
        on_mesh(gradients(config), mesh), in_shardings=where, out_shardings=(None, placed)
    )
    arguments = jax.device_put((params, reference, batch), where)
    return step.lower(*arguments).compile(), arguments


@functools.cache
def alone(config):
    return jax.jit(gradients(config))(*inputs(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=1, context=4, tensor=2),
        MeshConfig(data=2, fsdp=2, context=2),
    ],
    ids=["context and tensor", "data, fsdp and context"],
)
def test_eight_devices_equal_one(mesh):
    config = dataclasses.replace(TINY, window=9)
    step, arguments = compiled(config, make_mesh(mesh))
    got, want = step(*arguments), alone(config)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_nothing_but_keys_and_values_is_gathered():
    """What a program over context=4 moves whole: no stream, no logits, no chunk of either."""
    config = dataclasses.replace(TINY, width=40, mlp=56, vocab=72)  # no two sizes alike
    step, _ = compiled(config, make_mesh(MeshConfig(data=2, context=4)))
    text = step.as_text() or ""
    moves = "all-gather|all-to-all|collective-permute"
    moved = re.findall(rf"= f32\[([\d,]*)\][^=\n]* (?:{moves})(?:-start)?\(", text)
    sizes = {math.prod(map(int, shape.split(","))) for shape in moved}
    keys = config.kv_heads * config.head_dim
    assert sizes == {ROWS // 2 * LENGTH * keys}  # [B, T, G K] of a device's rows
    # Keys and values of both models, and again in the backward pass; the layers are scanned.
    assert len(moved) == 6


@pytest.mark.slow
@pytest.mark.parametrize("length, segmented", [(512, False), (300, True)])
@pytest.mark.parametrize("window", [None, 70])
def test_the_tpu_kernel_sees_its_own_queries(length, segmented, window):
    """Values and gradients on shards of T, of whole blocks and not, against the plain path."""
    draw = np.random.default_rng(0).standard_normal
    q, k, v = (draw((2, length, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    ids = None
    if segmented:
        ids = np.repeat([[1, 1, 2, 2, 3, 0], [4, 5, 5, 5, 5, 5]], 50, axis=1).astype(np.int32)
    settings = {"causal": True, "window": window, "q_segments": ids, "kv_segments": ids}

    def run(function):
        def loss(*x):
            out = function(*x, **settings)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    mesh = jax.make_mesh((2, 2, 2), ("data", "context", "tensor"), axis_types=(AxisType.Auto,) * 3)
    names = {"batch": "data", "length": "context", "heads": "tensor", "kv_heads": "tensor"}
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(names.items())):
        grads, out = run(functools.partial(splash.splash_attention, interpret=True))
    plain_grads, plain = run(dot_product_attention)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=2e-6)
    for a, b in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
