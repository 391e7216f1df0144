"""What mergekit 0.1.5 made of these recipes, in float32 and with torch 2.13, is what we make.

tests/goldens/mergekit_merges.json has, for each recipe, the inner product of each tensor of its
output (by name) with cos(0), cos(1), ...; the inputs are made here as they were then.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import merged, write_model

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens/mergekit_merges.json").read_text())
TOKENS, WIDTH, LAYERS, HIDDEN = 60, 32, 4, 64


def shapes():
    found = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        found[layer + "input_layernorm.weight"] = (WIDTH,)
        for name in "qkvo":
            found[layer + f"self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
        found[layer + "post_attention_layernorm.weight"] = (WIDTH,)
        found[layer + "mlp.gate_proj.weight"] = (HIDDEN, WIDTH)
        found[layer + "mlp.up_proj.weight"] = (HIDDEN, WIDTH)
        found[layer + "mlp.down_proj.weight"] = (WIDTH, HIDDEN)
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (TOKENS, WIDTH)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mergekit")
    base = {}
    for seed, name in enumerate(("base", "a", "b", "c")):
        random = np.random.default_rng(seed)
        scale = 0.1 if seed else 1
        drawn = {
            key: (random.standard_normal(shape) * scale).astype(np.float32)
            for key, shape in shapes().items()
        }
        base = base or drawn
        arrays = {key: base[key] + x for key, x in drawn.items()} if seed else base
        write_model(folder / name, arrays, {"num_hidden_layers": LAYERS})
    return folder


@pytest.mark.parametrize("name", GOLDENS)
def test_mergekits_numbers(models, name):
    found = merged(models, GOLDENS[name]["recipe"], name)
    sums = [np.dot(found[key].ravel(), np.cos(np.arange(found[key].size))) for key in sorted(found)]
    np.testing.assert_allclose(sums, GOLDENS[name]["sums"], atol=2e-5)
