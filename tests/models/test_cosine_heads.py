"""Cosine heads on an encoder: values by hand, weights shared with the pretrained model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import mlp
from kd_jax.models.cosine_heads import CosineHeadsConfig, cosine_heads, rules
from kd_jax.trees import match_rules

ENCODER = mlp.mlp(mlp.MLPConfig(inputs=8, widths=(6,), classes=2))
SIZES = {"width": 6, "known": 3, "hidden": 5, "projection": 4}
PLAIN = CosineHeadsConfig(**SIZES)
FULL = CosineHeadsConfig(novel=2, heads=2, temperature=0.5, **SIZES)
KEY = jax.random.key(0)
BATCH = {"inputs": jax.random.normal(KEY, (4, 2, 2, 2))}
OLD, NEW = (cosine_heads(ENCODER, "hidden_0", config) for config in (PLAIN, FULL))


@pytest.mark.slow
def test_values_by_hand():
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.array(draw.standard_normal(x.shape), jnp.float32), NEW.init(KEY)
    )
    output = NEW.apply(params, BATCH, taps=("known", "novel", "hidden_0"))
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.asarray(output.taps["hidden_0"], np.float64)

    def cosine(x, prototypes):
        lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(prototypes, axis=0)
        return x @ prototypes / lengths

    known = cosine(x, tree["known"]["prototypes"])
    novel = []
    for name in ("head_0", "head_1"):
        head = tree[name]
        y = x @ head["up"]["kernel"] + head["up"]["bias"]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6)
        y = np.maximum(y * head["norm"]["scale"] + head["norm"]["bias"], 0)
        y = y @ head["down"]["kernel"] + head["down"]["bias"]
        novel.append(cosine(y, head["prototypes"]))
    np.testing.assert_allclose(output.taps["known"], known, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.taps["novel"], np.stack(novel, 1), rtol=1e-4, atol=1e-5)
    want = np.concatenate([known, novel[0]], 1) / 0.5
    np.testing.assert_allclose(output.head.logits(), want, rtol=1e-4, atol=1e-4)


def test_heads_are_added_to_a_pretrained_model():
    old = OLD.init(jax.random.key(3))
    params = {**NEW.init(KEY), **old}
    output = NEW.apply(params, BATCH, taps=("known",))
    kept = OLD.apply(old, BATCH, taps=("known",))
    np.testing.assert_array_equal(output.taps["known"], kept.taps["known"])
    np.testing.assert_allclose(kept.head.logits(), kept.taps["known"] / 0.1, rtol=1e-6)
    for model, config in ((OLD, PLAIN), (NEW, FULL)):
        match_rules(rules(mlp.RULES, config), jax.eval_shape(model.init, KEY))
    with pytest.raises(ValueError, match="got novel, which a model without heads"):
        OLD.apply(old, BATCH, taps=("novel",))


def test_a_feature_of_zeros_is_no_trouble():
    params = NEW.init(KEY)
    dead = jax.tree.map(jnp.zeros_like, params["encoder"])
    total = jax.jit(jax.grad(lambda p: NEW.apply(p, BATCH).head.logits().sum()))
    slope = total(params | {"encoder": dead})
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_heads_and_new_classes_go_together():
    for wrong in ({"novel": 2}, {"heads": 2}, {"known": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="takes"):
            dataclasses.replace(PLAIN, **wrong)
