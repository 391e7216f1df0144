"""LoRA: identity at the start, both ways of multiplying, gradients, layouts, rules, and errors."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.launch.planning import flops
from kd_jax.models import adapters, decoder, layout, lora, mlp, norms, resnet, sampler, vit
from kd_jax.models.parts import LowRank, matmul
from kd_jax.trees import flatten, map_with_path, match_rules

CONFIG = decoder.DecoderConfig(
    vocab=16, width=8, depth=3, heads=2, kv_heads=1, head_dim=4, mlp=12, qkv_bias=True
)
MODEL = decoder.decoder(CONFIG)
TARGETS = "layers/(attn/[qv]|mlp/down)/kernel"
KEY = jax.random.key(1)
TOKENS = np.arange(8, dtype=np.int32)[None]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(5)(x.reshape(len(x), -1))


def is_low_rank(x):
    return isinstance(x, LowRank)


def logits(weights, config=CONFIG):
    return decoder.decoder(config).apply(weights, {"inputs": TOKENS}).head.logits()


def trained(tree, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(lambda x: jnp.asarray(0.3 * draw(x.shape), jnp.float32), tree)


BASE = trained(jax.eval_shape(MODEL.init, KEY))


def test_it_holds_the_targets_and_starts_at_the_base():
    tree = lora.init(KEY, BASE, TARGETS, rank=2)
    assert {path: x.shape for path, x in flatten(tree).items()} == {
        "layers/attn/q/kernel/a": (3, 8, 2),
        "layers/attn/q/kernel/b": (3, 2, 8),
        "layers/attn/v/kernel/a": (3, 8, 2),
        "layers/attn/v/kernel/b": (3, 2, 4),
        "layers/mlp/down/kernel/a": (3, 12, 2),
        "layers/mlp/down/kernel/b": (3, 2, 8),
    }
    a = tree["layers"]["mlp"]["down"]["kernel"]["a"]
    assert 0.25 < np.abs(a).max() <= 12**-0.5
    attached = lora.attach(BASE, tree, alpha=16)
    for path, x in flatten(lora.merge(attached)).items():
        np.testing.assert_array_equal(x, flatten(BASE)[path], err_msg=path)
    np.testing.assert_array_equal(logits(attached), logits(BASE))


def test_merge_adds_the_scaled_product_and_leaves_the_rest_alone():
    tree = trained(lora.init(KEY, BASE, TARGETS, rank=2))
    merged = flatten(lora.merge(lora.attach(BASE, tree, alpha=3.0)))
    plain = lora.merge(BASE)
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (plain, BASE)), strict=True))
    adapted = {path.rpartition("/")[0] for path in flatten(tree)}
    for path, w in flatten(BASE).items():
        if path not in adapted:
            assert merged[path] is w
            continue
        a, b = (np.asarray(flatten(tree)[f"{path}/{x}"], np.float64) for x in "ab")
        for i in range(3):
            np.testing.assert_allclose(
                merged[path][i], w[i] + 1.5 * a[i] @ b[i], rtol=1e-5, atol=1e-5
            )


def test_both_layouts_agree():
    tree = trained(lora.init(KEY, BASE, TARGETS, rank=2))
    flat = lora.init(KEY, layout.unstack(BASE), r"layers/\d/attn/[qv]/kernel", rank=2)
    assert flatten(flat)["layers/1/attn/q/kernel/a"].shape == (8, 2)
    there = lora.attach(layout.unstack(BASE), layout.unstack(tree), alpha=4)
    here = layout.unstack(lora.attach(BASE, tree, alpha=4))
    jax.tree.map(np.testing.assert_array_equal, there, here)
    jax.tree.map(
        np.testing.assert_array_equal, layout.stack(there), lora.attach(BASE, tree, alpha=4)
    )


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("remat", [True, False])
def test_a_decoder_runs_and_trains_as_with_the_merged_kernels(scan, remat):
    """The function and the gradient of a and b are those of W + a @ b multiplied out."""
    config = dataclasses.replace(CONFIG, scan=scan, remat=remat)
    base, tree = BASE, trained(lora.init(KEY, BASE, TARGETS, rank=2))
    if not scan:
        base, tree = layout.unstack(base), layout.unstack(tree)

    def loss(tree, form):
        return jnp.sum(jnp.sin(logits(form(lora.attach(base, tree, alpha=4)), config)))

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (got, grad), (want, wanted) = run(tree, lambda weights: weights), run(tree, lora.merge)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), grad, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_the_backward_pass_makes_no_gradient_of_a_frozen_kernel(scan, dtype):
    """FLOPs: full training's without what only gives W's gradient, and the adapters' own."""
    config = dataclasses.replace(CONFIG, scan=scan, remat=False, dtype=dtype)
    base, tokens = jax.eval_shape(decoder.decoder(config).init, KEY), TOKENS.size
    kernels = {path: x for path, x in flatten(base).items() if path.endswith("/kernel")}
    tree = jax.eval_shape(lambda: lora.init(KEY, base, lambda path: path in kernels, rank=2))

    def loss(tree, base):
        weights = lora.attach(base, tree, alpha=4) if tree else base
        return logits(weights, config).sum()

    full = flops.of(jax.grad(loss, argnums=1), None, base).total
    adapted = flops.of(jax.grad(loss), tree, base).total
    # The gradients of the kernels and of the table of logits.
    saved = sum(x.size for x in kernels.values()) + config.vocab * config.width
    # Forward, to a or b, and to the input of each.
    added = 3 * sum(x.size for x in jax.tree.leaves(tree))
    if not scan:  # nothing trained comes before q, k and v of the first layer: no gradient to it
        first = config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim
        saved += config.width * first
        added -= 3 * config.width * 2
    assert adapted == full + 2 * tokens * (added - saved)


def test_an_update_below_the_resolution_of_16_bit_weights():
    """It moves x @ W + (x @ a) @ b, and is rounded off in W + a @ b: 1 + 2^-10 is 1 there."""
    base = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    tree = {"kernel": {"a": jnp.asarray([[1.0], [-1.0]]), "b": jnp.full((1, 3), 2.0**-10)}}
    attached = lora.attach(base, tree, alpha=1)
    x = jnp.asarray([[[1, -1]]], jnp.bfloat16)  # of x @ W nothing is left
    got = matmul(x, attached["kernel"])
    np.testing.assert_array_equal(got, jnp.full((1, 1, 3), 2.0**-9, jnp.bfloat16))
    np.testing.assert_array_equal(matmul(x, lora.merge(attached)["kernel"]), jnp.zeros((1, 1, 3)))


def test_sampling():
    tree = trained(lora.init(KEY, BASE, TARGETS, rank=2))
    attached = lora.attach(BASE, tree, alpha=2)
    prompts, lengths = jnp.asarray([[1, 2, 3], [4, 5, 0]]), jnp.asarray([3, 2])
    got, want = (
        sampler.generate(CONFIG, weights, prompts, lengths, KEY, max_new=4)
        for weights in (attached, lora.merge(attached))
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_several_adapters_at_once():
    """vmap over a and b of one base: kernel and stream are shared, what differs is small."""
    trees = [trained(lora.init(KEY, BASE, TARGETS, rank=2), seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    got = jax.vmap(lambda tree: logits(lora.attach(BASE, tree, alpha=2)))(stacked)
    for x, tree in zip(got, trees, strict=True):
        np.testing.assert_allclose(
            x, logits(lora.attach(BASE, tree, alpha=2)), rtol=1e-4, atol=1e-4
        )


IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 2)).astype(np.float32)
EXPERTS = dataclasses.replace(CONFIG, experts=4, experts_per_token=2)
OTHERS = {
    "experts": (decoder.decoder(EXPERTS), ".*(router|gate|up|down)/kernel", TOKENS),
    "embeddings": (MODEL, "embed/embedding", TOKENS),
    "mlp": (mlp.mlp(mlp.MLPConfig(inputs=128, widths=(8,), classes=5)), ".*kernel", IMAGES),
    "vit": (
        vit.vit(vit.ViTConfig(image=8, channels=2, width=16, depth=1, heads=2, mlp=24, classes=5)),
        ".*kernel",
        IMAGES,
    ),
    "resnet": (
        resnet.resnet(
            resnet.ResNetConfig(blocks=(1,), widths=(8,), channels=2, classes=5),
            norm=norms.group_norm(4),
        ),
        ".*kernel",
        IMAGES,
    ),
    "linen": (adapters.from_linen(Linen(), IMAGES), ".*kernel", IMAGES),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_models(name):
    """Kernels that a model needs whole are merged on the way; rank 1 fits every one of them."""
    model, targets, inputs = OTHERS[name]
    base = trained(jax.eval_shape(model.init, KEY))
    attached = lora.attach(base, trained(lora.init(KEY, base, targets, rank=1)), alpha=1)
    assert any(isinstance(x, LowRank) for x in jax.tree.leaves(attached, is_leaf=is_low_rank))
    got, want = (
        model.apply(weights, {"inputs": inputs}).head.logits()
        for weights in (attached, lora.merge(attached))
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_reach_a_and_b():
    tree = lora.init(KEY, BASE, TARGETS, rank=2)

    @jax.jit
    @jax.grad
    def gradient(tree, base):
        return jnp.sum(jnp.sin(logits(lora.attach(base, tree, alpha=4))))

    for path, grad in flatten(gradient(tree, BASE)).items():
        # While b is zero nothing reaches a.
        assert (np.abs(grad).max() > 0) == path.endswith("/b"), path
    for path, grad in flatten(gradient(trained(tree), BASE)).items():
        assert np.abs(grad).max(axis=(1, 2)).min() > 0, path


def test_a_leaf_depends_on_its_path_only():
    some = flatten(lora.init(KEY, BASE, TARGETS, rank=2))
    more = flatten(lora.init(KEY, BASE, lambda path: path.endswith("/kernel"), rank=2))
    for path, x in some.items():
        np.testing.assert_array_equal(x, more[path])
    q, k = (more[f"layers/attn/{name}/kernel/a"] for name in "qk")
    assert np.abs(q - k).max() > 0


def test_dtypes():
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE)
    tree = trained(lora.init(KEY, base, TARGETS, rank=2))
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    attached = lora.attach(base, tree, alpha=2)
    merged = lora.merge(attached)["layers"]["attn"]["q"]["kernel"]
    wide = lora.merge(attached, dtype=jnp.float32)["layers"]["attn"]["q"]["kernel"]
    assert merged.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
    np.testing.assert_array_equal(wide.astype(jnp.bfloat16), merged)
    assert np.abs(wide - merged.astype("f4")).max() > 0


def test_rules_follow_the_base():
    abstract = jax.eval_shape(lambda: lora.init(KEY, BASE, TARGETS, rank=2))
    derived = lora.lora_rules(decoder.rules(CONFIG), abstract)
    axes = match_rules(derived, abstract)["layers"]
    assert axes["attn"]["q"]["kernel"] == {
        "a": ("layers", "embed", None),
        "b": ("layers", None, "heads"),
    }
    assert axes["attn"]["v"]["kernel"]["b"] == ("layers", None, "kv_heads")
    assert axes["mlp"]["down"]["kernel"]["a"] == ("layers", "mlp", None)


def test_errors_name_what_does_not_fit():
    with pytest.raises(ValueError, match="matches no path"):
        lora.init(KEY, BASE, "layers/attn/query/kernel", rank=2)
    with pytest.raises(ValueError, match=r"final_norm/scale has shape \(8,\)"):
        lora.init(KEY, BASE, "final_norm/scale", rank=2)
    for rank, path in ((0, "layers/attn/q/kernel"), (5, "layers/attn/v/kernel")):
        with pytest.raises(ValueError, match=f"rank: got {rank} for {path}"):
            lora.init(KEY, BASE, TARGETS, rank=rank)
    tree = lora.init(KEY, BASE, TARGETS, rank=2)
    with pytest.raises(ValueError, match="layers/mlp/down/kernel, which base does not have"):
        lora.attach({"layers": {"attn": BASE["layers"]["attn"]}}, tree, alpha=1)
    wrong = map_with_path(lambda path, x: x[:, :-1] if path.endswith("q/kernel") else x, BASE)
    with pytest.raises(ValueError, match=r"is \(3, 8, 2\) @ \(3, 2, 8\), base has \(3, 7, 8\)"):
        lora.attach(wrong, tree, alpha=1)
