"""LoRA: identity at the start, gradients, both layouts, rules, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import decoder, layout, lora
from kd_jax.trees import flatten, map_with_path, match_rules

CONFIG = decoder.DecoderConfig(
    vocab=16, width=8, depth=3, heads=2, kv_heads=1, head_dim=4, mlp=12, qkv_bias=True
)
MODEL = decoder.decoder(CONFIG)
TARGETS = "layers/(attn/[qv]|mlp/down)/kernel"
KEY = jax.random.key(1)


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
    for path, x in flatten(lora.attach(BASE, tree, alpha=16)).items():
        np.testing.assert_array_equal(x, flatten(BASE)[path], err_msg=path)


def test_attach_adds_the_scaled_product_and_leaves_the_rest_alone():
    tree = trained(lora.init(KEY, BASE, TARGETS, rank=2))
    merged = flatten(lora.attach(BASE, tree, alpha=3.0))
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
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), there, here)


def test_gradients_reach_a_and_b():
    tree = lora.init(KEY, BASE, TARGETS, rank=2)
    tokens = {"inputs": np.arange(8, dtype=np.int32)[None]}

    @jax.jit
    @jax.grad
    def gradient(tree, base):
        weights = lora.attach(base, tree, alpha=4)
        return jnp.sum(jnp.sin(MODEL.apply(weights, tokens).head.logits()))

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
    merged = lora.attach(base, tree, alpha=2)["layers"]["attn"]["q"]["kernel"]
    wide = lora.attach(base, tree, alpha=2, dtype=jnp.float32)["layers"]["attn"]["q"]["kernel"]
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
