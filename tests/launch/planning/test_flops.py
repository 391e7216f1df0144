"""FLOPs of traced programs against formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from kd_jax.launch.planning import flops
from kd_jax.models.decoder import DecoderConfig, decoder

B, T = 2, 12
CONFIG = DecoderConfig(
    vocab=64, width=32, depth=3, heads=4, kv_heads=2, head_dim=8, mlp=48, logits_head=True
)


def of(f, *shapes):
    return flops.of(f, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes))


def products(config):
    """(of the whole forward pass, of a layer, of a layer's last product)."""
    tokens, heads = B * T, config.heads * config.head_dim
    kv = config.kv_heads * config.head_dim
    mlp = 2 * tokens * config.width * config.mlp
    attention = 2 * (2 * tokens * T * heads)
    layer = 2 * tokens * config.width * (2 * heads + 2 * kv) + attention + 3 * mlp
    head = 2 * tokens * config.width * config.vocab
    return config.depth * layer + head, layer, mlp


def loss(config):
    model = decoder(config)

    def of_params(params, tokens):
        return jnp.sum(jax.nn.log_softmax(model.apply(params, {"inputs": tokens}).head.z))

    params = jax.eval_shape(model.init, jax.random.key(0))
    return of_params, params, jax.ShapeDtypeStruct((B, T), np.int32)


def test_a_decoder_forward():
    function, *shapes = loss(CONFIG)
    assert flops.of(function, *shapes) == (products(CONFIG)[0], 0)


@pytest.mark.parametrize("scan", [True, False])
def test_its_gradient_with_and_without_recomputation(scan):
    config = dataclasses.replace(CONFIG, scan=scan)
    forward, layer, last = products(config)
    function, *shapes = loss(config)
    found = flops.of(jax.grad(function), *shapes)
    # Three times the forward pass, and once more all of a layer but what only gives its output.
    again = config.depth * (layer - last)
    assert found == (3 * forward + again, again)
    assert found.model == 3 * forward
    kept = dataclasses.replace(config, remat=False)
    function, *shapes = loss(kept)
    assert flops.of(jax.grad(function), *shapes) == (3 * forward, 0)


def test_loops():
    def nested(x):
        def inner(c, _):
            return c @ c, None

        return jax.lax.scan(lambda c, _: jax.lax.scan(inner, c, length=3), x, length=5)[0]

    def until(last, step):
        def f(x):
            loop = jax.lax.while_loop(
                lambda c: c[0] < last, lambda c: (c[0] + step, c[1] @ c[1]), (1, x)
            )
            return loop[1]

        return f

    square = 2 * 4**3
    assert of(nested, (4, 4)).total == 15 * square
    assert of(until(7, 1), (4, 4)).total == 6 * square
    assert of(until(8, 3), (4, 4)).total == 3 * square

    # Not to be read from the program: once.
    def unknown(x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c @ c, x)

    assert of(unknown, (4, 4)).total == square


def test_the_largest_branch_and_calls():
    def f(x):
        y = jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)
        return jax.jit(jnp.matmul)(x, y)

    assert of(f, (4, 4)).total == 3 * 2 * 4**3
    einsum = of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 2, 3), (5, 3, 7))
    assert einsum.total == 2 * 5 * 2 * 3 * 7


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_and_both_of_its_gradients(groups):
    def f(x, k):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        return jnp.sum(y**2)

    x, k = (2, 8, 8, 4), (3, 3, 4 // groups, 6)
    once = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4 // groups)
    assert of(f, x, k).total == once
    assert of(jax.grad(f, (0, 1)), x, k).total == 3 * once


def test_a_ragged_product_and_its_gradients():
    def f(x, w):
        return jnp.sum(jax.lax.ragged_dot(x, w, jnp.array([3, 5, 0])) ** 2)

    x, w = (8, 4), (3, 4, 6)
    assert of(f, x, w).total == 2 * 8 * 4 * 6
    assert of(jax.grad(f, (0, 1)), x, w).total == 3 * 2 * 8 * 4 * 6


@pytest.mark.parametrize(("axes", "rows"), [({"a", "b"}, "b"), ({"a"}, None)])
def test_a_sharded_body_counts_for_each_shard(axes, rows):
    """Over the axes that it is mapped over: the others are the compiler's."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    f = jax.shard_map(
        lambda x, y: jax.lax.psum(x @ y, "a"),
        mesh=mesh,
        in_specs=(P(rows, "a"), P("a")),
        out_specs=P(rows),
        axis_names=axes,
    )
    shapes = [jax.ShapeDtypeStruct((16, 16), np.float32)] * 2
    assert flops.count(jax.make_jaxpr(f)(*shapes)).total == 2 * 16**3


@pytest.mark.parametrize("told", [None, 12345])
def test_a_kernel(told):
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def f(x, y):
        return pl.pallas_call(
            kernel,
            grid=(2, 4),
            in_specs=[
                pl.BlockSpec((8, 16), lambda i, j: (i, 0)),
                pl.BlockSpec((16, 8), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((16, 32), np.float32),
            cost_estimate=told and pl.CostEstimate(told, 0, 0),
        )(x, y)

    assert of(f, (16, 16), (16, 32)).total == (told or 2 * 16 * 16 * 32)


def test_recomputation_is_inherited_by_what_is_inside():
    @jax.checkpoint
    def f(x):
        def body(c, _):
            return jnp.sin(c @ c), None

        return jnp.sum(jnp.sin(jax.lax.scan(body, x, length=3)[0]))

    square = 2 * 4**3
    assert of(f, (4, 4)) == (3 * square, 0)
    total, again = of(jax.grad(f), (4, 4))
    assert (total, again) == (12 * square, 3 * square)


def test_attention_is_dense_whatever_the_platform():
    function, *shapes = loss(CONFIG)
    tpu = AbstractDevice("TPU v5 lite", None, "tpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        assert "pallas_call" in str(jax.make_jaxpr(function)(*shapes))
        assert flops.of(function, *shapes).total == products(CONFIG)[0]


def test_a_call_without_results_is_not_counted():
    """What is left of a call of which recomputation needed nothing; the compiler drops it."""

    def f(x):
        jax.jit(lambda y: (jnp.matmul(y, y), None)[1])(x)
        return x

    traced = jax.make_jaxpr(f)(jnp.ones((4, 4)))
    assert [len(e.outvars) for e in traced.eqns] == [0]
    assert flops.count(traced).total == 0
