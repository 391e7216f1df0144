"""What a layer keeps for the backward pass, by name: the same gradients, less computed twice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import layout
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.models.splash import splash_attention

TINY = DecoderConfig(vocab=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
ALL = ("qkv", "mixed", "attention", "gate_up")


@functools.cache
def weights():
    draw = np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(decoder(TINY).init, jax.random.key(0))
    return jax.tree.map(lambda x: (0.2 * draw(x.shape)).astype(np.float32), shapes)


def gradient(config):
    def loss(params):
        return jnp.mean(jnp.sin(decoder(config).apply(params, {"inputs": TOKENS}).head.logits()))

    return jax.grad(loss)


@functools.cache
def plain():
    config = dataclasses.replace(TINY, scan=False, remat=False)
    return jax.jit(gradient(config))(layout.unstack(weights()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"remat_save": ALL},
        {"remat_save": ("attention",), "remat_offload": ("qkv", "mixed", "gate_up")},
        {"scan": False},
        {"scan": False, "remat_offload": ("gate_up",)},
    ],
    ids=["kept", "in host memory", "unrolled", "unrolled, in host memory"],
)
def test_gradients_are_the_plain_ones(change):
    config = dataclasses.replace(TINY, **change)
    params = weights() if config.scan else layout.unstack(weights())
    got = jax.jit(gradient(config))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        layout.unstack(got) if config.scan else got,
        plain(),
    )


def equations(jaxpr, again=False):
    """(equation, whether it is computed again) for every equation of a jaxpr, inner ones too.

    But those of a call that has no results: the compiler drops it.
    """
    for eqn in jaxpr.eqns:
        if not eqn.outvars:
            continue
        here = again or "rematted_computation" in str(eqn.source_info.name_stack)
        yield eqn, here
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, here)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "save, products",
    [
        ((), 8),  # q, k, v, their scores and mixture, the output; gate and up
        (("qkv",), 5),
        (("mixed",), 7),
        (("attention",), 7),
        (("gate_up",), 6),
        (ALL, 1),  # the scores
    ],
)
@pytest.mark.parametrize("field", ["remat_save", "remat_offload"])
def test_what_is_kept_is_not_computed_again(field, save, products, dtype):
    config = dataclasses.replace(TINY, dtype=dtype, **{field: save})
    jaxpr = jax.make_jaxpr(gradient(config))(weights()).jaxpr
    found = list(equations(jaxpr))
    again = [eqn for eqn, here in found if here and eqn.primitive.name == "dot_general"]
    assert len(again) == products
    to_host = [
        eqn
        for eqn, _ in found
        for var in eqn.outvars
        if getattr(var.aval, "memory_space", None) == jax.memory.Space.Host
    ]
    assert bool(to_host) == (field == "remat_offload" and bool(save))


def test_the_tpu_kernel_is_not_run_again_where_its_result_is_kept():
    q = jnp.ones((1, 128, 2, 8))

    def kernels(policy):
        def layer(q):
            return splash_attention(jnp.sin(q), q, q, causal=True, window=None, interpret=True)

        kept = jax.checkpoint(layer, policy=policy)
        jaxpr = jax.make_jaxpr(jax.grad(lambda q: jnp.sin(kept(q)).sum()))(q).jaxpr
        return sum(eqn.primitive.name == "pallas_call" for eqn, _ in equations(jaxpr))

    # Forward; for dq and for dk, dv; and, where nothing is kept, forward once more.
    assert kernels(None) == 4
    assert kernels(jax.checkpoint_policies.save_only_these_names("mixed")) == 3
