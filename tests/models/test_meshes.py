"""Every model, its rules and a training step: the same numbers on one device and on eight."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import optim
from kd_jax.launch.loop import jit_step
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.planning.compiled import Compiler
from kd_jax.launch.planning.topologies import devices_of
from kd_jax.launch.sharding import batch_sharding, on_mesh, shard_tree, shardings_of, with_shardings
from kd_jax.launch.stages import Program
from kd_jax.launch.weights import abstract_state, from_arrays, init_state
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.models import adapters, decoder, lora, mlp, resnet, vit
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.supervise import supervise
from kd_jax.steps import make_train_step
from kd_jax.types import weighted_sum

DECODER = decoder.DecoderConfig(
    vocab=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48, qkv_bias=True
)
NARROW = decoder.DecoderConfig(
    vocab=64,
    width=32,
    depth=1,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    qk_norm=True,
    tied=True,
    dtype="bfloat16",
    param_dtype="bfloat16",
)
EXPERTS = dataclasses.replace(DECODER, depth=1, mlp=32, experts=4)
RESNET = resnet.ResNetConfig(blocks=(1, 1), widths=(8, 16), channels=2, classes=5)
VIT = vit.ViTConfig(image=8, patch=4, channels=2, width=16, depth=2, heads=2, mlp=24, classes=5)
TARGETS = "layers/(attn/[qv]|mlp/down)/kernel"


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        hidden = nn.relu(nn.Dense(16, name="first")(x.reshape(len(x), -1)))
        return nn.Dense(5, name="last")(hidden)


def _draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IMAGES = {"inputs": _draw((16, 8, 8, 2)), "labels": np.arange(16, dtype=np.int32) % 5}
TOKENS = {
    "inputs": np.random.default_rng(0).integers(0, 64, (16, 8)).astype(np.int32),
    "labels": np.random.default_rng(1).integers(0, 64, (16, 8)).astype(np.int32),
}
LINEN_RULES = (
    (r"first/kernel", ("embed", "mlp")),
    (r"last/kernel", ("mlp", "classes")),
    (r"(first|last)/bias", (None,)),
)


def _of_images(output, batch):
    return weighted_sum(-label_log_probs(output.head.logits(), batch["labels"]))


def _of_tokens(output, batch):
    return weighted_sum(-token_log_probs(output.head, batch["labels"], chunk=4))


MODELS = {
    "mlp": (mlp.mlp(mlp.MLPConfig(inputs=128, widths=(12,), classes=5)), mlp.RULES, IMAGES),
    "resnet": (resnet.resnet(RESNET), resnet.RULES, IMAGES),
    "vit": (vit.vit(VIT), vit.RULES, IMAGES),
    "linen": (adapters.from_linen(Linen(), IMAGES["inputs"]), LINEN_RULES, IMAGES),
    "bfloat16": (decoder.decoder(NARROW), decoder.rules(NARROW), TOKENS),
    "lora": (decoder.decoder(DECODER), decoder.rules(DECODER), TOKENS),
    "experts": (decoder.decoder(EXPERTS), decoder.rules(EXPERTS), TOKENS),
}


def drawn(tree):
    """Away from initialisation; kernels [in, out] of variance 1 / in."""

    def leaf(x):
        scale = 0.2 if len(x.shape) < 2 else 1 / math.sqrt(math.prod(x.shape[-2:-1]))
        return (scale * _draw(x.shape, x.size)).astype(x.dtype)

    return jax.tree.map(leaf, tree)


def attached(params, frozen):
    return lora.attach(frozen["base"], params["model"], alpha=4)


def training(name, mesh):
    """(step, its weights before, frozen as shapes with shardings and as values, rules, batch)."""
    model, rules, batch = MODELS[name]
    weights, frozen, values = drawn(jax.eval_shape(model.init, jax.random.key(0))), {}, {}
    policy = own_weights
    if name == "lora":
        shapes = jax.eval_shape(lambda: lora.init(jax.random.key(0), weights, TARGETS, rank=2))
        values = {"base": weights}
        frozen = {"base": with_shardings(weights, shard_tree(weights, rules, mesh))}
        weights, rules = drawn(shapes), lora.lora_rules(rules, shapes)
        policy = attached
    term = _of_tokens if batch is TOKENS else _of_images
    # Sums in another order would turn the sign of a step of Adam where the gradient is nearly 0.
    tx = optim.sgd(0.1, momentum=0.9)
    tx = optim.float32_masters(tx) if name == "bfloat16" else tx
    step = make_train_step(supervise(model, {"labels": term}, policy=policy), tx)
    return step, from_arrays(weights), frozen, values, rules, batch


def train(name, mesh):
    """(the state after two steps, the metrics of the second)."""
    step, given, frozen, values, rules, batch = training(name, mesh)
    abstract = abstract_state(step, given, frozen, batch, rules=rules, mesh=mesh)
    frozen = jax.device_put(values, shardings_of(frozen))
    state = init_state(step, given, frozen, batch, jax.random.key(0), abstract)
    rows = jax.device_put(batch, batch_sharding(mesh))
    where = shardings_of(abstract)
    run = jax.jit(on_mesh(step.apply, mesh), out_shardings=(where, None), donate_argnums=0)
    for _ in range(2):
        state, metrics = run(state, frozen, rows)
    return state, metrics


@functools.cache
def alone(name):
    return jax.device_get(train(name, make_mesh(MeshConfig(), jax.devices()[:1])))


MESHES = dict.fromkeys(MODELS, MeshConfig(data=2, fsdp=2, tensor=2)) | {
    "bfloat16": MeshConfig(data=1, fsdp=8),
    "experts": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_eight_devices_equal_one(name):
    state, metrics = train(name, make_mesh(MESHES[name]))
    want, wanted = alone(name)
    split = [x for x in jax.tree.leaves(state.params) if not x.is_fully_replicated]
    assert bool(split) == (name != "mlp")
    near = 2e-2 if name == "bfloat16" else 2e-4
    parts = (state.params, state.opt_state, state.carry, metrics)
    wants = (want.params, want.opt_state, want.carry, wanted)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(wants), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=near, atol=near * max(np.abs(b).max(), 0.1))


@pytest.mark.libtpu
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_compiled_for_a_tpu(name):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices_of("v5e:2x2"))
    step, given, frozen, _, rules, batch = training(name, mesh)
    state = abstract_state(step, given, frozen, batch, rules=rules, mesh=mesh)
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), batch
    )
    program = Program(jit_step(step, shardings_of(state), mesh), (state, frozen, rows))
    account = Compiler("tpu").account(program)
    assert account.refusal is None and account.peak > 0


def test_masters_keep_what_bfloat16_parameters_round_off():
    """The step of a bfloat16 decoder: parameters are the rounding of float32 masters."""
    state, _ = alone("bfloat16")
    masters = state.opt_state.masters["model"]
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state.params["model"]))
    finer = 0
    for held, master in zip(
        jax.tree.leaves(state.params["model"]), jax.tree.leaves(masters), strict=True
    ):
        np.testing.assert_array_equal(held, master.astype(jnp.bfloat16))
        finer += np.sum(master != held.astype(np.float32))
    assert finer > 1000
