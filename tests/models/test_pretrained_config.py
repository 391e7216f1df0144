import dataclasses
import json

import numpy as np
import pytest
from support.tiny_decoders import TINY

from kd_jax.formats.tensors import LazyTensor
from kd_jax.models import rope
from kd_jax.models.pretrained_config import config_from_gguf, config_from_hf, config_to_hf

LLAMA = TINY["models"]["llama"]["config"]


@pytest.mark.parametrize("name", TINY["models"])
def test_the_config_comes_back(name):
    config = config_from_hf(TINY["models"][name]["config"])
    written = config_to_hf(config, max_length=64)
    assert written["model_type"] == TINY["models"][name]["config"]["model_type"]
    assert config_from_hf(json.loads(json.dumps(written))) == config


def test_the_form_of_transformers_5_is_read():
    given = dict(TINY["models"]["llama3_scaling"]["config"])
    expected = config_from_hf(given)
    given["rope_parameters"] = {"rope_theta": given.pop("rope_theta"), **given.pop("rope_scaling")}
    assert config_from_hf(given) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: got 'gpt2', takes llama, mistral"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu'"),
        ({"attention_bias": True}, "attention_bias: got True"),
        ({"mlp_bias": True}, "mlp_bias: got True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type: got 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "factor: got None"),
        ({"rope_scaling": 3}, "rope_scaling: got 3"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: got 0.5"),
        ({"hidden_size": None}, "hidden_size: got None"),
        ({"hidden_size": 2**40}, "hidden_size: got 1099511627776"),
        ({"num_hidden_layers": True}, "num_hidden_layers: got True"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: got nan"),
        ({"rope_theta": "big"}, "rope_theta: got 'big'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: got 'yes'"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4,
             "max_window_layers": 1},
            "max_window_layers: got 1, takes 0 or at least 2",
        ),
        (
            {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: got several",
        ),
    ],
)  # fmt: skip
def test_configs_that_the_decoder_does_not_cover_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(LLAMA | changes)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"model_type": "llama", "sliding_window": 7}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 7}, None),
        ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True}, None),
        (
            {"model_type": "qwen3", "sliding_window": 7, "use_sliding_window": True,
             "max_window_layers": 0},
            7,
        ),
    ],
)  # fmt: skip
def test_windows(changes, window):
    assert config_from_hf(LLAMA | changes).window == window


def test_what_no_model_type_has_is_refused():
    config = config_from_hf(LLAMA)
    for changes, message in (
        ({"softcap": 3.0}, "softcap: got 3.0"),
        ({"qkv_bias": True, "qk_norm": True}, "qkv_bias: got True with qk_norm"),
        ({"qkv_bias": True, "head_dim": 16}, "head_dim: got 16"),
    ):
        with pytest.raises(ValueError, match=message):
            config_to_hf(dataclasses.replace(config, **changes), max_length=8)


def fake(shape, array=None) -> LazyTensor:
    return LazyTensor("x", shape, np.dtype(np.float32), lambda index: np.asarray(array))


def test_scaled_frequencies_of_llama_3_are_recognised(tmp_path):
    metadata = {
        "general.architecture": "llama",
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.block_count": 1,
        "llama.feed_forward_length": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
    }
    # The divisors that llama.cpp's converter writes (LlamaModel.generate_extra_tensors).
    freqs = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    wavelengths = 2 * np.pi / freqs
    smooth = (8192 / wavelengths - 1) / (4 - 1)
    divisors = 1 / ((1 - smooth) / 32 + smooth)
    divisors = np.where(wavelengths < 8192 / 4, 1, np.where(wavelengths > 8192, 32, divisors))
    tensors = {"token_embd.weight": fake((100, 4096))}
    assert config_from_gguf(metadata, tensors).rope_scaling is None
    tensors["rope_freqs.weight"] = fake((64,), divisors.astype(np.float32))
    expected = rope.Llama3Scaling(factor=32.0)
    assert config_from_gguf(metadata, tensors).rope_scaling == expected
    for wrong in (divisors**2, divisors * np.nan, divisors * 0.5):
        tensors["rope_freqs.weight"] = fake((64,), wrong.astype(np.float32))
        with pytest.raises(ValueError, match=r"rope_freqs\.weight: not the scaling of Llama"):
            config_from_gguf(metadata, tensors)
    tensors["rope_freqs.weight"] = fake((32,))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight: got \(32,\), takes \(64,\)"):
        config_from_gguf(metadata, tensors)
