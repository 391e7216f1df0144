"""Tiny decoders with random weights, whose logits tests/goldens/tiny_decoders.json holds."""

import dataclasses
import json
import zlib
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import trees
from kd_jax.formats import huggingface
from kd_jax.formats.tensors import from_array
from kd_jax.models.decoder import decoder

GOLDENS = Path(__file__).parent.parent / "goldens"
TINY = json.loads((GOLDENS / "tiny_decoders.json").read_text())


def draw(name: str, shape) -> np.ndarray:
    """The weights of a tiny model's tensor: the rule of tools/make_decoder_goldens.py."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return (1 + 0.1 * z if "norm" in name else 0.2 * z).astype(np.float32)


def arrays(name: str) -> dict[str, np.ndarray]:
    return {key: draw(key, shape) for key, shape in TINY["models"][name]["shapes"].items()}


def write(folder, name: str = "llama", config: dict = {}, **changed: np.ndarray | None) -> Path:
    """A tiny model's folder; changed tensors by name, None for leaving one out."""
    given = arrays(name) | {key.replace("__", "."): value for key, value in changed.items()}
    tensors = [from_array(key, value) for key, value in given.items() if value is not None]
    config = TINY["models"][name]["config"] | config
    huggingface.write_folder(folder, tensors, config, max_shard_bytes=10_000)
    return folder


def logits(config, params, ids) -> np.ndarray:
    """f32 [B, T, V]."""
    model = decoder(dataclasses.replace(config, remat=False, logits_head=True))
    return np.asarray(jax.jit(model.apply)(params, {"inputs": jnp.asarray(ids)}).head.z)


def assert_equal(found, expected) -> None:
    trees.check_same("found", found, "expected", expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, name: str, kind=gguf.GGMLQuantizationType.F32) -> Path:
    """A tiny model as llama.cpp's converter lays it out; matrices with `kind` where it fits."""
    config = TINY["models"][name]["config"]
    arch = config["model_type"]
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "rope_scaling" in config:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    for key, array in arrays(name).items():
        for theirs, ours in GGUF_NAMES.items():
            key = key.replace(theirs, ours)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        for part, count_name in heads.items():
            if arch == "llama" and f"{part}.weight" in key:
                # convert_hf_to_gguf.py, LlamaModel.permute
                by_head = array.reshape(config[count_name], 2, head_dim // 2, -1)
                array = by_head.swapaxes(1, 2).reshape(array.shape)
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(key, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
