"""The decoder: its layouts, options and places. Values against transformers: test_pretrained.py."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.models import layout
from kd_jax.models.decoder import DecoderConfig, decoder, rules
from kd_jax.trees import check_same, flatten, map_with_path, match_rules

TINY = DecoderConfig(vocab=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
UNROLLED = dataclasses.replace(TINY, scan=False, remat=False)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
MAPPING = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
)


@functools.cache
def weights(config):
    """Kernels, biases and embeddings of variance 1 / 25, norms near 1."""
    draw = np.random.default_rng(0).standard_normal
    return map_with_path(
        lambda path, x: (0.2 * draw(x.shape) + path.endswith("scale")).astype(np.float32),
        jax.eval_shape(decoder(config).init, jax.random.key(0)),
    )


@functools.cache
def compiled(config):
    return jax.jit(lambda params, batch: decoder(config).apply(params, batch).head.logits())


def logits(config, params, tokens=TOKENS, **inputs):
    return compiled(config)(params, {"inputs": tokens, **inputs})


def test_scanned_equals_unrolled():
    stacked, unrolled = weights(TINY), layout.unstack(weights(TINY))
    np.testing.assert_allclose(
        logits(TINY, stacked), logits(UNROLLED, unrolled), rtol=1e-5, atol=1e-5
    )
    back = layout.stack(unrolled)
    check_same("back", back, "stacked", stacked)
    assert all(
        jnp.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(stacked), strict=True)
    )


def test_a_gap_in_the_layers_is_an_error():
    unrolled = layout.unstack(weights(TINY))
    del unrolled["layers"]["0"]
    with pytest.raises(ValueError, match="'1'.*without a gap"):
        layout.stack(unrolled)


def test_grouped_queries_equal_repeated_key_heads():
    params = weights(TINY)

    def repeated(path, x):
        if path in ("layers/attn/k/kernel", "layers/attn/v/kernel"):
            return jnp.repeat(x.reshape(2, 32, 2, 8), 2, axis=2).reshape(2, 32, 32)
        return x

    full = dataclasses.replace(TINY, kv_heads=4)
    np.testing.assert_allclose(
        logits(TINY, params),
        logits(full, map_with_path(repeated, params)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_packed_segments_equal_separate_rows():
    """Whatever the padding's tokens are."""
    params = weights(TINY)
    packed = np.concatenate([TOKENS[0, :5], TOKENS[1, :4], TOKENS[0, 5:8]])[None]
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
    got = logits(TINY, params, packed, segments=segments)
    first, second = logits(TINY, params)[:, :5]
    np.testing.assert_allclose(got[0, :5], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[0, 5:9], second[:4], rtol=1e-4, atol=1e-5)
    assert np.isfinite(got).all()


def test_causality_window_and_positions():
    windowed = dataclasses.replace(TINY, window=3)
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 64
    for config, reach in ((TINY, 8), (windowed, 5)):  # two layers see 2 * (3 - 1) tokens back
        params = weights(config)
        moved = np.abs(logits(config, params) - logits(config, params, changed)).max((0, 2)) > 1e-6
        assert moved.tolist() == [4 <= i < 4 + reach for i in range(12)]
    # Rotary positions are relative: a common shift changes nothing, a stretch does.
    params = weights(TINY)
    places = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
    plain = logits(TINY, params)
    np.testing.assert_allclose(
        logits(TINY, params, positions=places + 7), plain, rtol=1e-3, atol=1e-5
    )
    assert np.abs(logits(TINY, params, positions=2 * places) - plain).max() > 1e-3


def test_heads_and_softcap():
    params = weights(TINY)
    plain = logits(TINY, params)
    capped = dataclasses.replace(TINY, softcap=0.5)
    np.testing.assert_allclose(
        logits(capped, params), 0.5 * np.tanh(plain / 0.5), rtol=1e-5, atol=1e-5
    )
    dense = decoder(dataclasses.replace(capped, logits_head=True)).apply(params, {"inputs": TOKENS})
    np.testing.assert_allclose(dense.head.z, logits(capped, params), rtol=1e-5, atol=1e-5)
    factored = decoder(capped).apply(params, {"inputs": TOKENS}).head
    assert factored.hidden.shape == (2, 12, 32) and factored.unembedding.shape == (64, 32)
    tied = dataclasses.replace(TINY, tied=True)
    same = {**params, "unembed": params["embed"]}
    without = {name: x for name, x in params.items() if name != "unembed"}
    np.testing.assert_allclose(logits(tied, without), logits(TINY, same), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, UNROLLED], ids=["scanned", "unrolled"])
def test_taps_and_additions(config):
    params = weights(TINY) if config.scan else layout.unstack(weights(TINY))
    names = ("embed", "block_0", "block_1", "final")

    @jax.jit
    def run(add):
        out = decoder(config).apply(params, {"inputs": TOKENS}, taps=names, add=add)
        return out.taps, out.head.logits()

    zeros = {name: jnp.zeros((2, 12, 32)) for name in names}
    taps, plain = run(zeros)
    np.testing.assert_allclose(taps["embed"], params["embed"]["embedding"][TOKENS])
    np.testing.assert_allclose(
        taps["final"] @ params["unembed"]["embedding"].T, plain, rtol=1e-4, atol=1e-5
    )
    assert np.abs(taps["block_0"] - taps["block_1"]).max() > 0.1

    # After block 0: the same as continuing from the changed stream, and nothing before it moves.
    deltas = dict(zeros, block_0=0.3 * jnp.sin(jnp.arange(768.0)).reshape(2, 12, 32))
    moved, _ = run(deltas)
    np.testing.assert_array_equal(moved["embed"], taps["embed"])
    np.testing.assert_allclose(
        moved["block_0"], taps["block_0"] + deltas["block_0"], rtol=1e-5, atol=1e-5
    )
    replaced, _ = run(dict(zeros, block_1=moved["block_1"] - taps["block_1"]))
    np.testing.assert_allclose(replaced["final"], moved["final"], rtol=1e-4, atol=1e-5)


def test_gradients_of_additions():
    """Against finite differences, at every place."""
    params, names = weights(TINY), ("embed", "block_0", "block_1", "final")

    @jax.jit
    @jax.value_and_grad
    def loss(add):
        return jnp.sum(
            jnp.sin(decoder(TINY).apply(params, {"inputs": TOKENS}, add=add).head.logits())
        )

    zeros = {name: jnp.zeros((2, 12, 32)) for name in names}
    _, grads = loss(zeros)
    step = 2e-3 * np.random.default_rng(3).standard_normal((2, 12, 32)).astype(np.float32)
    for name in names:
        up, down = (loss(dict(zeros, **{name: sign * step}))[0] for sign in (1, -1))
        slope = np.sum(grads[name] * step)
        np.testing.assert_allclose((up - down) / 2, slope, rtol=0.02, atol=1e-3)


def test_unasked_places_cost_nothing_and_unknown_ones_are_errors():
    out = decoder(TINY).apply(weights(TINY), {"inputs": TOKENS}, state={"kept": 1})
    assert out.taps == {} and out.state == {"kept": 1}
    with pytest.raises(ValueError, match="taps: got block_2, takes .*block_1"):
        decoder(TINY).apply(weights(TINY), {"inputs": TOKENS}, taps=("block_2",))
    with pytest.raises(ValueError, match="add: got block2"):
        decoder(TINY).apply(weights(TINY), {"inputs": TOKENS}, add={"block2": 0.0})


@pytest.mark.slow
def test_bfloat16_is_near_and_so_are_its_gradients():
    plain = dataclasses.replace(TINY, depth=1, remat=False)
    narrow = dataclasses.replace(plain, dtype="bfloat16")
    params = weights(plain)

    def gradient(config):
        def loss(params):
            head = decoder(config).apply(params, {"inputs": TOKENS}).head
            assert head.hidden.dtype == head.unembedding.dtype == config.compute_dtype
            return jnp.mean(jnp.sin(head.logits()))

        return jax.jit(jax.grad(loss))(params)

    wanted = flatten(gradient(plain))
    for path, leaf in flatten(gradient(narrow)).items():
        assert leaf.dtype == jnp.float32
        distance = np.linalg.norm(leaf - wanted[path])
        assert 0 < distance < 0.05 * np.linalg.norm(wanted[path]), path


def test_a_mesh_gives_the_same_logits():
    params = weights(TINY)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    tokens = np.concatenate([TOKENS, TOKENS[::-1]])
    shardings = jax.tree.map(
        lambda x, axes: NamedSharding(mesh, nn.logical_to_mesh_axes(axes, MAPPING)),
        params,
        match_rules(rules(TINY), params),
    )
    placed = jax.device_put(params, shardings)
    rows = NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", None), MAPPING))
    assert placed["layers"]["mlp"]["down"]["kernel"].addressable_shards[0].data.shape == (2, 24, 16)
    with jax.set_mesh(mesh), nn.logical_axis_rules(MAPPING):
        run = jax.jit(lambda p, x: decoder(TINY).apply(p, {"inputs": x}).head)
        head = run(placed, jax.device_put(tokens, rows))
    assert head.hidden.sharding.spec[0] == ("data", "fsdp")
    # Whole along D, so that a loss over pieces of T need not gather it for each.
    whole = NamedSharding(mesh, PartitionSpec("tensor", None))
    assert head.unembedding.sharding.is_equivalent_to(whole, 2)
    np.testing.assert_allclose(head.logits(), logits(TINY, params, tokens), rtol=1e-5, atol=1e-5)


def test_token_ids_outside_the_vocabulary_are_seen():
    tokens = TOKENS.copy()
    tokens[0, 3] = 64
    got = np.asarray(logits(TINY, weights(TINY), tokens))
    assert np.isnan(got[0, 3]).all() and np.isfinite(got[1]).all()
