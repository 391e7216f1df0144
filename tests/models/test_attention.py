"""Attention: every path against sums written out in numpy, and the TPU kernel against XLA's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.models import attention as attention_module
from kd_jax.models.attention import attention, dot_product_attention, splash_attention

CASES = {
    "causal": {"causal": True, "window": None},
    "window": {"causal": True, "window": 3},
    "two-sided window": {"causal": False, "window": 2},
    "full": {"causal": False, "window": None},
}
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3, 3, 3]], np.int32)


def arrays(length=9, heads=4, kv_heads=2, head_dim=8, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return (
        draw((2, length, heads, head_dim)).astype(np.float32),
        draw((2, length, kv_heads, head_dim)).astype(np.float32),
        draw((2, length, kv_heads, head_dim)).astype(np.float32),
    )


def by_hand(q, k, v, *, causal, window, segments=None, places=None):
    """Query by query, in float64, with a softmax over the visible keys only."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(*q.shape[:3]):
        place = i if places is None else places[b, i]
        seen = [
            j
            for j in range(k.shape[1])
            if (not causal or j <= place)
            and (window is None or abs(place - j) < window)
            and (segments is None or segments[b, i] == segments[b, j])
        ]
        scores = k[b, seen, h // group].astype(np.float64) @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, seen, h // group] / weights.sum()
    return out


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one segment", "segments"])
@pytest.mark.parametrize("case", CASES)
def test_values(case, segments):
    q, k, v = arrays()
    got = attention(q, k, v, q_segments=segments, kv_segments=segments, **CASES[case])
    np.testing.assert_allclose(
        got, by_hand(q, k, v, segments=segments, **CASES[case]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("case", ["causal", "window"])
def test_positions_place_queries_among_cached_keys(case):
    q, k, v = arrays()
    places = np.array([[4, 5], [8, 2]], np.int32)
    got = attention(q[:, :2], k, v, q_positions=places, **CASES[case])
    wanted = by_hand(q[:, :2], k, v, places=places, **CASES[case])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_padding_neither_influences_nor_breaks():
    q, k, v = arrays()
    real = jnp.asarray(SEGMENTS > 0)[:, :, None, None]

    @jax.value_and_grad
    def loss(inputs):
        out = attention(*inputs, q_segments=SEGMENTS, kv_segments=SEGMENTS)
        return jnp.sum(jnp.where(real, out, 0.0) ** 2)

    spoilt = [np.where(real, x, 1e4).astype(np.float32) for x in (q, k, v)]
    (value, grads), (other, other_grads) = loss([q, k, v]), loss(spoilt)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for grad, other_grad in zip(grads, other_grads, strict=True):
        np.testing.assert_allclose(jnp.where(real, 0.0, grad), 0.0)
        np.testing.assert_allclose(grad, other_grad, rtol=1e-5, atol=1e-6)


def test_sixteen_bits_keep_a_float32_softmax():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
    got = attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    wanted = by_hand(*(np.asarray(x, np.float32) for x in (q, k, v)), causal=True, window=None)
    np.testing.assert_allclose(np.asarray(got, np.float32), wanted, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("case, segmented", [("causal", True), ("window", True), ("window", False)])
def test_the_tpu_kernel_equals_the_plain_path(case, segmented):
    """Values and gradients, on a length that is no multiple of the kernel's block."""
    length = 130
    inputs = arrays(length=length, heads=2, kv_heads=1)
    segments = None
    if segmented:
        segments = np.repeat([[1, 2, 0], [3, 3, 4]], [50, 50, 30], axis=1).astype(np.int32)
    settings = {"q_segments": segments, "kv_segments": segments, **CASES[case]}

    def loss(function, inputs):
        out = function(*inputs, **settings)
        return jnp.sum(jnp.sin(out)), out

    def run(function):
        return jax.jit(jax.grad(functools.partial(loss, function), has_aux=True))(inputs)

    kernel_grads, kernel = run(functools.partial(splash_attention, interpret=True))
    plain_grads, plain = run(dot_product_attention)
    np.testing.assert_allclose(kernel, plain, rtol=1e-5, atol=2e-6)
    for kernel_grad, plain_grad in zip(kernel_grads, plain_grads, strict=True):
        np.testing.assert_allclose(kernel_grad, plain_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2], ids=["heads repeated", "heads cut"])
def test_the_tpu_kernel_runs_on_the_shards_of_a_mesh(kv_heads):
    q, k, v = arrays(length=5, heads=4, kv_heads=kv_heads)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    mapping = (("batch", "data"), ("heads", "tensor"), ("kv_heads", "tensor"))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    sharded = functools.partial(splash_attention, causal=True, window=None, interpret=True)
    with jax.set_mesh(mesh), nn.logical_axis_rules(mapping):
        got = jax.jit(sharded)(*(jax.device_put(x, rows) for x in (q, k, v)))
    assert got.sharding.spec == PartitionSpec("data", None, "tensor")
    np.testing.assert_allclose(
        got, by_hand(q, k, v, causal=True, window=None), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("platform, kernel", [("tpu", True), ("cpu", False), ("cuda", False)])
def test_the_platform_chooses(monkeypatch, platform, kernel):
    called = []
    monkeypatch.setattr(attention_module, "_platform", lambda: platform)
    for name in ("splash_attention", "dot_product_attention"):
        monkeypatch.setattr(
            attention_module, name, lambda *x, name=name, **kw: called.append((name, kw))
        )
    q, k, v = arrays()
    attention(q, k, v)
    attention(q[:, :1], k, v, q_positions=np.full((2, 1), 3, np.int32))
    names = [name for name, _ in called]
    assert names == ["splash_attention" if kernel else "dot_product_attention"] + [
        "dot_product_attention"
    ]
    assert called[1][1]["cudnn"] == (platform == "cuda")


@pytest.mark.parametrize(
    "dtype, head_dim, length, segmented, window, causal, cudnn",
    [
        (jnp.bfloat16, 64, 8, False, 4, True, True),
        (jnp.bfloat16, 64, 8, True, None, True, True),
        (jnp.float32, 64, 8, False, None, True, False),
        (jnp.bfloat16, 20, 8, False, None, True, False),
        (jnp.bfloat16, 64, 9, True, None, True, False),
        (jnp.bfloat16, 64, 8, False, 4, False, False),
    ],
)
def test_cudnn_gets_what_it_takes(
    monkeypatch, dtype, head_dim, length, segmented, window, causal, cudnn
):
    """Also that no mask is made where there are no segments."""
    seen = {}
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, **kw: seen.update(kw))
    x = jnp.zeros((2, length, 2, head_dim), dtype)
    segments = jnp.ones((2, length), jnp.int32) if segmented else None
    dot_product_attention(
        x, x, x, causal=causal, window=window, q_segments=segments, kv_segments=segments, cudnn=True
    )
    assert seen["implementation"] == ("cudnn" if cudnn else "xla")
    assert (seen["mask"] is None) == (not segmented)


@pytest.mark.gpu
def test_cudnn_equals_xla():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays(length=64, head_dim=64))
    segments = jnp.repeat(jnp.array([[1, 2], [3, 0]], jnp.int32), 32, axis=1)
    for window, ids in ((None, None), (7, None), (None, segments)):
        settings = {"causal": True, "window": window, "q_segments": ids, "kv_segments": ids}
        fast, plain = (
            dot_product_attention(q, k, v, cudnn=cudnn, **settings) for cudnn in (True, False)
        )
        np.testing.assert_allclose(fast.astype("f4"), plain.astype("f4"), atol=0.02)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"window": 0}, "window"),
        ({"q_segments": SEGMENTS}, "kv_segments"),
        ({"q_segments": SEGMENTS[:, :4], "kv_segments": SEGMENTS}, "q_segments"),
        ({"q_positions": SEGMENTS[:, :4]}, "q_positions"),
        ({"k": np.zeros((2, 9, 3, 8), np.float32), "v": np.zeros((2, 9, 3, 8), np.float32)}, "k"),
        ({"k": np.zeros((2, 5, 2, 8), np.float32), "v": np.zeros((2, 5, 2, 8), np.float32)}, "k"),
        ({"v": np.zeros((2, 5, 2, 8), np.float32)}, "v"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, name):
    q, k, v = arrays()
    with pytest.raises(ValueError, match=rf"\b{name}\b.*takes"):
        attention(**{"q": q, "k": k, "v": v, **change})
