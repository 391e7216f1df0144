"""DecoderConfig from Hugging Face's config.json and from GGUF metadata, and to config.json.

What a file says and the decoder cannot do is a ValueError that names it; dropout, which only
training would use, is not read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_jax.formats.tensors import LazyTensor
from kd_jax.models import rope
from kd_jax.models.config import DecoderConfig

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # GGUF's; Mistral models are written as llama
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MOST = 2**31 - 1


def config_from_hf(config: Mapping[str, Any], **options: Any) -> DecoderConfig:
    """The decoder of a config.json of model_type llama, mistral, qwen2 or qwen3.

    options: further fields of DecoderConfig, such as scan or dtype. ValueError: a field that is
    missing or not what it should be, or that asks for what the decoder does not do.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"model_type: got {kind!r}, takes {', '.join(MODEL_TYPES)}")
    _refuse(config)
    heads, width = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    theta, scaling = _rotary(config)
    return DecoderConfig(
        vocab=_count(config, "vocab_size"),
        width=width,
        depth=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", heads if kind == "llama" else None),
        head_dim=_count(config, "head_dim", 128 if kind == "qwen3" else width // heads),
        mlp=_count(config, "intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        tied=_flag(config, "tie_word_embeddings"),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        window=_window(config, kind),
        **options,
    )


def _refuse(config: Mapping[str, Any]) -> None:
    """ValueError for what would change the function that the weights compute."""
    for name, accepted in (
        ("hidden_act", ("silu", None)),
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        ("quantization_config", (None,)),
        ("partial_rotary_factor", (1.0, None)),
    ):
        if config.get(name) not in accepted:
            raise ValueError(f"{name}: got {config[name]!r}, takes {accepted[0]!r}")


def _rotary(config: Mapping[str, Any]) -> tuple[float, rope.Scaling | None]:
    """(theta, scaling) from rope_parameters (transformers 5) or rope_theta and rope_scaling."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_scaling: got {given!r}, takes an object")
    theta = _number({"rope_theta": config.get("rope_theta"), **given}, "rope_theta", 10_000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor: got {given['partial_rotary_factor']}, takes 1.0")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, rope.LinearScaling(factor=_number(given, "factor"))
    if kind == "llama3":
        return theta, rope.Llama3Scaling(
            factor=_number(given, "factor"),
            low_frequency_factor=_number(given, "low_freq_factor"),
            high_frequency_factor=_number(given, "high_freq_factor"),
            original_length=_count(given, "original_max_position_embeddings"),
        )
    raise ValueError(f"rope_type: got {kind!r}, takes default, linear or llama3")


def _window(config: Mapping[str, Any], kind: str) -> int | None:
    """The window of every layer; models that mix windowed and full layers are refused."""
    window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    depth = _count(config, "num_hidden_layers")
    if kind == "llama" or window is None:
        return None
    if kind in ("qwen2", "qwen3"):
        if not _flag(config, "use_sliding_window"):
            return None
        first = config.get("max_window_layers", 28)  # layers before it see everything
        if type(first) is not int or first >= depth:
            return None
        if first > 0:
            raise ValueError(f"max_window_layers: got {first}, takes 0 or at least {depth}")
    if len(set(config.get("layer_types") or ["sliding_attention"])) > 1:
        raise ValueError("layer_types: got several, takes one for all layers")
    return _count(config, "sliding_window", window)


def config_to_hf(config: DecoderConfig, *, max_length: int) -> dict[str, Any]:
    """The config.json of a decoder, as the one model type that has its parts: qwen3 with
    qk_norm, qwen2 with qkv_bias, mistral with a window, llama otherwise.

    max_length: the longest context it is meant for (max_position_embeddings). ValueError: a
    combination that none of them has (softcap; experts; two of qk_norm, qkv_bias and, but for
    Qwen, a window).
    """
    if config.softcap is not None:
        raise ValueError(f"softcap: got {config.softcap}, takes None, no model type here has one")
    if config.experts:
        raise ValueError(f"experts: got {config.experts}, takes 0, no model type here has them")
    if config.qk_norm and config.qkv_bias:
        raise ValueError("qkv_bias: got True with qk_norm, no model type here has both")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if kind == "llama" and config.window is not None:
        kind = "mistral"
    if kind == "qwen2" and config.head_dim * config.heads != config.width:
        raise ValueError(f"head_dim: got {config.head_dim}, takes width / heads in a qwen2 model")
    given: dict[str, Any] = {
        "model_type": kind,
        "architectures": [_CLASSES[kind]],
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tied,
    }
    if kind != "llama":
        given["sliding_window"] = config.window
    if kind in ("qwen2", "qwen3"):
        given["use_sliding_window"] = config.window is not None
        given["max_window_layers"] = config.depth if config.window is None else 0
    return given


def _scaling_to_hf(scaling: rope.Scaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, rope.LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_length,
    }


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor], **options: Any
) -> DecoderConfig:
    """The decoder of a GGUF file of architecture llama (Mistral too), qwen2 or qwen3.

    Tied embeddings and biases are told from the tensors that are there. ValueError as in
    `config_from_hf`; also for scaled rotary frequencies (rope_freqs.weight) other than those of
    Llama 3.1 and later, since the file does not say how they were made.
    """
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(f"general.architecture: got {kind!r}, takes {', '.join(ARCHITECTURES)}")
    if "token_embd.weight" not in tensors:
        raise ValueError("token_embd.weight: missing")
    own = {k.removeprefix(f"{kind}."): v for k, v in metadata.items() if k.startswith(f"{kind}.")}
    heads, width = _count(own, "attention.head_count"), _count(own, "embedding_length")
    head_dim = _count(own, "attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if _count(own, name, head_dim) != head_dim:
            raise ValueError(f"{kind}.{name}: got {own[name]}, takes the head's {head_dim}")
    theta = _number(own, "rope.freq_base", 10_000.0)
    return DecoderConfig(
        vocab=tensors["token_embd.weight"].shape[0],
        width=width,
        depth=_count(own, "block_count"),
        heads=heads,
        kv_heads=_count(own, "attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp=_count(own, "feed_forward_length"),
        rope_theta=theta,
        rope_scaling=_scaling_from_gguf(own, tensors, head_dim, theta),
        norm_eps=_number(own, "attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        window=_count(own, "attention.sliding_window", 0, least=0) or None,
        **options,
    )


def _scaling_from_gguf(
    own: Mapping[str, Any], tensors: Mapping[str, LazyTensor], head_dim: int, theta: float
) -> rope.Scaling | None:
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type: got {kind!r}, takes none or linear")
    linear = kind == "linear" and rope.LinearScaling(factor=_number(own, "rope.scaling.factor"))
    if "rope_freqs.weight" not in tensors:
        return linear or None
    # The divisors of the frequencies. Every Llama 3 scales with the defaults of Llama3Scaling
    # but for the factor, which is the largest divisor.
    divisors = tensors["rope_freqs.weight"]
    if divisors.shape != (head_dim // 2,):
        raise ValueError(f"rope_freqs.weight: got {divisors.shape}, takes {(head_dim // 2,)}")
    values = divisors.read(...)
    plain = rope.frequencies(head_dim, theta)
    factor = float(values.max())
    if not linear and np.isfinite(factor) and factor >= 1:
        scaling = rope.Llama3Scaling(factor=factor)
        if np.allclose(plain / rope.frequencies(head_dim, theta, scaling), values, rtol=1e-4):
            return scaling
    raise ValueError("rope_freqs.weight: not the scaling of Llama 3.1 and later")


def _count(given: Mapping[str, Any], name: str, default: int | None = None, least: int = 1) -> int:
    value: Any = given.get(name)
    value = default if value is None else value
    if type(value) is not int or not least <= value <= _MOST:
        raise ValueError(f"{name}: got {value!r}, takes an integer of at least {least}")
    return value


def _number(given: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value: Any = given.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < float(value) < 1e12:
        raise ValueError(f"{name}: got {value!r}, takes a positive number")
    return float(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name)
    if value not in (True, False, None):
        raise ValueError(f"{name}: got {value!r}, takes true or false")
    return bool(value)
