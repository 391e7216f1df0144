import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoders import GOLDENS, logits

from kd_jax.formats.fetch import smollm2_path
from kd_jax.models.pretrained import open_pretrained
from kd_jax.models.sampler import generate

SMOLLM2 = json.loads((GOLDENS / "smollm2.json").read_text())

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def smollm2():
    """(what was opened, its parameters, logits f32 [6, T, V] of the goldens' texts and greedy
    continuations)."""
    path = Path(os.environ.get("KD_JAX_SMOLLM2") or smollm2_path())
    if not path.is_file():
        pytest.skip("missing data: run `python -m kd_jax.formats.fetch smollm2`")
    model = open_pretrained(path)
    params = model.make(model.abstract)
    rows = [row["ids"] + row["greedy"] for row in SMOLLM2["sequences"]]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return model, params, logits(model.config, params, ids)


def test_smollm2_gives_the_numbers_of_transformers(smollm2):
    found = smollm2[2]
    for i, row in enumerate(SMOLLM2["sequences"]):
        last = len(row["ids"]) - 1
        rows = found[i, :last].astype(np.float64)
        log_probs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        mine = log_probs[np.arange(last), row["ids"][1:]]
        np.testing.assert_allclose(mine, row["log_probs"], rtol=0, atol=2e-3)
        chosen = found[i, last, SMOLLM2["vocabulary_ids"]]
        np.testing.assert_allclose(chosen, row["last_logits"], rtol=0, atol=2e-3)
        top = np.argsort(-found[i, last])[:5]
        np.testing.assert_array_equal(top, row["top"]["ids"])
        np.testing.assert_allclose(found[i, last, top], row["top"]["logits"], rtol=0, atol=2e-3)


@pytest.mark.slow
def test_smollm2_continues_as_in_transformers(smollm2):
    model, params, found = smollm2
    sequences = SMOLLM2["sequences"]
    lengths = np.array([len(row["ids"]) for row in sequences], np.int32)
    prompts = np.zeros((len(sequences), lengths.max()), np.int32)
    for i, row in enumerate(sequences):
        prompts[i, : lengths[i]] = row["ids"]
    tokens, _ = generate(
        model.config, params, jnp.asarray(prompts), jnp.asarray(lengths), jax.random.key(0),
        max_new=16,
    )  # fmt: skip
    for i, row in enumerate(sequences):
        assert row["smallest_greedy_margin"] > 10 * 2e-3  # so that nothing hangs on rounding
        assert tokens[i].tolist() == row["greedy"]
        # With causal attention one pass over text and continuation says the same.
        start = lengths[i] - 1
        assert found[i, start : start + 16].argmax(-1).tolist() == row["greedy"]


def test_smollm2_tensors_are_those_of_transformers(smollm2):
    layers = smollm2[1]["layers"]
    ours = {
        "model.embed_tokens.weight": smollm2[1]["embed"]["embedding"],
        "model.layers.3.self_attn.q_proj.weight": layers["attn"]["q"]["kernel"][3].T,
        "model.layers.29.mlp.down_proj.weight": layers["mlp"]["down"]["kernel"][29].T,
    }
    for name, golden in SMOLLM2["tensors"].items():
        assert list(ours[name].shape) == golden["shape"]
        np.testing.assert_array_equal(ours[name][golden["row"], :6], golden["values"])


def test_smollm2_has_its_tokeniser(smollm2):
    found = smollm2[0].tokenizer()
    chat = SMOLLM2["chats"][0]
    text = found.apply_chat(chat["messages"], add_generation_prompt=True)
    assert found.encode(text) == SMOLLM2["sequences"][-1]["ids"]
    assert smollm2[0].max_length == 8192
