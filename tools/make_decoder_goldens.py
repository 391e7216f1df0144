"""Makes tests/goldens/tiny_decoders.json with PyTorch transformers: logits of small random models.

Run as make_smollm2_goldens.py is, without an argument; what that says about versions holds here.
The weights are not stored: each tensor is drawn from a generator seeded with its name (`draw`),
in the tests too.
"""

# torch and transformers are not dependencies.
# pyright: reportMissingImports=false

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from make_smollm2_goldens import origin, rounded, write
from transformers import AutoConfig, AutoModelForCausalLM


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a tiny model's tensor; the tests have the same rule."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return (1 + 0.1 * z if "norm" in name else 0.2 * z).astype(np.float32)


COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = {
    "llama": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    "llama3_scaling": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear_scaling": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "mistral": {
        "model_type": "mistral",
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4,
        "head_dim": 16,
    },
    "qwen2": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
    "qwen3": {
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "head_dim": 16,
    },
}


@torch.no_grad()
def tiny_decoders() -> dict:
    ids = np.random.RandomState(1).randint(0, COMMON["vocab_size"], (2, 12))
    models = {}
    for name, own in TINY.items():
        given = {**COMMON, **own}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(given))
            config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32
        ).eval()
        tied = given["tie_word_embeddings"]
        shapes = {
            key: list(value.shape)
            for key, value in model.state_dict().items()
            if not (tied and key == "lm_head.weight")
        }
        model.load_state_dict(
            {key: torch.from_numpy(draw(key, tuple(shape))) for key, shape in shapes.items()},
            strict=not tied,
        )
        logits = model(torch.from_numpy(ids)).logits
        models[name] = {
            "config": given,
            "shapes": shapes,
            # every fourth position of the first row and the last of the second
            "logits": [[rounded(row) for row in logits[0, 2::4, ::2]], rounded(logits[1, -1, ::2])],
        }
    return {
        "origin": origin(__file__, "random weights, see draw()"),
        "ids": ids.tolist(),
        "models": models,
    }


if __name__ == "__main__":
    write("tiny_decoders", tiny_decoders())
