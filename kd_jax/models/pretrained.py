"""Decoders in and out of files: Hugging Face folders and GGUF.

    model = open_pretrained("folder-or-file.gguf")
    params = model.make(abstract tree with shardings)

Opening reads headers only, and every tensor is accounted for there and then. `make` reads each
shard of each parameter straight from the file into its device.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from kd_jax import trees
from kd_jax.formats import gguf, huggingface, tokenizer
from kd_jax.formats.tensors import Index, LazyTensor, bounds
from kd_jax.formats.tokenizer import Tokenizer
from kd_jax.models.config import DecoderConfig
from kd_jax.models.decoder import decoder
from kd_jax.models.pretrained_config import config_from_gguf, config_from_hf, config_to_hf

PyTree = Any

# (our path, Hugging Face's name, GGUF's name); layers are numbered in front.
_TOP = (
    ("embed/embedding", "model.embed_tokens.weight", "token_embd.weight"),
    ("final_norm/scale", "model.norm.weight", "output_norm.weight"),
    ("unembed/embedding", "lm_head.weight", "output.weight"),
)
_LAYER = (
    ("attn_norm/scale", "input_layernorm.weight", "attn_norm.weight"),
    ("attn/q/kernel", "self_attn.q_proj.weight", "attn_q.weight"),
    ("attn/k/kernel", "self_attn.k_proj.weight", "attn_k.weight"),
    ("attn/v/kernel", "self_attn.v_proj.weight", "attn_v.weight"),
    ("attn/o/kernel", "self_attn.o_proj.weight", "attn_output.weight"),
    ("attn/q/bias", "self_attn.q_proj.bias", "attn_q.bias"),
    ("attn/k/bias", "self_attn.k_proj.bias", "attn_k.bias"),
    ("attn/v/bias", "self_attn.v_proj.bias", "attn_v.bias"),
    ("attn/q_norm/scale", "self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("attn/k_norm/scale", "self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("mlp_norm/scale", "post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp/gate/kernel", "mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp/up/kernel", "mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp/down/kernel", "mlp.down_proj.weight", "ffn_down.weight"),
)
_HF = {ours: name for ours, name, _ in _TOP} | {
    ours: f"model.layers.{{}}.{name}" for ours, name, _ in _LAYER
}
_GGUF = {ours: name for ours, _, name in _TOP} | {
    ours: f"blk.{{}}.{name}" for ours, _, name in _LAYER
}
# Not weights: rotary frequencies that old versions of transformers saved, and those that GGUF
# keeps for scaled rotations, which `config_from_gguf` reads.
_NOT_WEIGHTS = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rope_freqs\.weight"


class Pretrained(NamedTuple):
    """A decoder in files, opened and checked, of which no weight is read yet.

    config: its shape; `dataclasses.replace` changes what is not in the layout (remat, dtype).
    abstract: ShapeDtypeStructs of its parameters.
    make(tree of ShapeDtypeStructs like abstract, with shardings) -> arrays, each shard read
        straight from the file; without a sharding, on the first device. A leaf's dtype is what
        the tree asks for. With abstract it makes `launch.weights.Weights`.
    tokenizer(): reads the tokeniser; ValueError when there is none that can be read.
    max_length: the longest context the model is meant for.
    """

    config: DecoderConfig
    abstract: PyTree
    make: Callable[[PyTree], PyTree]
    tokenizer: Callable[[], Tokenizer]
    max_length: int


class _Source(NamedTuple):
    """One tensor of a file that makes a parameter, or one layer of it.

    transposed: the file has [out, in] where we have [in, out]. heads: rows are in the interleaved
    rotary order of GGUF's llama, head by head; 0: they are in ours.
    """

    tensor: LazyTensor
    transposed: bool
    heads: int


def open_pretrained(path: str | Path, **options: Any) -> Pretrained:
    """A decoder in a Hugging Face folder or a GGUF file.

    options: further fields of DecoderConfig; param_dtype is that of the parameters (default
    float32), scan decides the layout of the layers.

    ValueError, naming it: a tensor that is missing, left over or of another shape than the config
    says, a malformed file, a config that the decoder does not cover.
    """
    path = Path(path)
    if path.is_dir():
        given = huggingface.read_json(path / "config.json")
        config = config_from_hf(given, **options)
        tensors, names, interleaved = huggingface.open_folder(path), _HF, False
        length, own = (
            given.get("max_position_embeddings"),
            functools.partial(tokenizer.from_folder, path),
        )
    elif path.is_file():
        metadata, tensors = gguf.open_gguf(path)
        config = config_from_gguf(metadata, tensors, **options)
        kind = metadata["general.architecture"]
        names, interleaved = _GGUF, kind == "llama"
        length = metadata.get(f"{kind}.context_length")
        own = functools.partial(tokenizer.from_gguf, metadata)
    else:
        raise ValueError(f"{path}: there is no such file or folder")
    if config.depth > len(tensors):
        raise ValueError(
            f"{path}: is said to have {config.depth} layers, has {len(tensors)} tensors"
        )
    abstract = jax.eval_shape(decoder(config).init, jax.random.key(0))
    sources = _account(path, config, abstract, tensors, names, interleaved)

    def make(placed: PyTree) -> PyTree:
        trees.check_same("placed", placed, "the file", abstract)
        return trees.map_with_path(lambda name, leaf: _make(leaf, sources[name]), placed)

    # 2048: what transformers takes for a Llama that does not say.
    length = length if type(length) is int and length > 0 else 2048
    return Pretrained(config, abstract, make, own, length)


def _account(
    path: Path,
    config: DecoderConfig,
    abstract: PyTree,
    tensors: Mapping[str, LazyTensor],
    names: Mapping[str, str],
    interleaved: bool,
) -> dict[str, list[_Source]]:
    """The tensors that make each parameter; ValueError unless they are all and the only ones."""
    left = {name for name in tensors if not re.fullmatch(_NOT_WEIGHTS, name)}
    faults = []
    found: dict[str, list[_Source]] = {}
    for leaf, aval in trees.flatten(abstract).items():
        kind, layers = _place(config, leaf)
        shape = aval.shape[1:] if len(layers) > 1 or config.scan and layers else aval.shape
        transposed = kind.endswith("/kernel")
        heads = {"q": config.heads, "k": config.kv_heads}.get(kind.split("/")[1], 0)
        if not interleaved or not kind.startswith("attn/"):
            heads = 0
        found[leaf] = []
        for name in [names[kind].format(i) for i in layers] or [names[kind]]:
            tensor = tensors.get(name)
            if tensor is None:
                faults.append(f"{name} is missing")
                continue
            left.discard(name)
            wanted = shape[::-1] if transposed else shape
            if tensor.shape != wanted:
                faults.append(f"{name} has shape {tensor.shape}, {wanted} was expected")
            found[leaf].append(_Source(tensor, transposed, heads))
    faults += [f"{name} is left over" for name in sorted(left)]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(f"{path}: " + "; ".join(faults[:8]) + more)
    return found


def _place(config: DecoderConfig, path: str) -> tuple[str, list[int]]:
    """(the path without layers, the layers in the leaf, none for a leaf outside them)."""
    if not path.startswith("layers/"):
        return path, []
    rest = path.removeprefix("layers/")
    if config.scan:
        return rest, list(range(config.depth))
    number, kind = rest.split("/", 1)
    return kind, [int(number)]


def _make(leaf: jax.ShapeDtypeStruct, sources: list[_Source]) -> jax.Array:
    stacked = len(leaf.shape) > len(sources[0].tensor.shape)

    def fetch(index: tuple[slice, ...] | None) -> np.ndarray:
        parts = bounds(... if index is None else index, leaf.shape)
        # New memory each time: on the CPU JAX may take it over, and a step donate it.
        out = np.empty([part.stop - part.start for part in parts], leaf.dtype)
        if stacked:
            for i, source in enumerate(sources[parts[0]]):
                out[i] = _read(source, parts[1:])
        else:
            out[...] = _read(sources[0], parts)
        return out

    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, fetch)


def _read(source: _Source, index: tuple[slice, ...]) -> np.ndarray:
    index = index[::-1] if source.transposed else index
    if source.heads:
        values = _read_interleaved(source.tensor, source.heads, index)
    else:
        values = source.tensor.read(index)
    return values.T if source.transposed else values


def _read_interleaved(tensor: LazyTensor, heads: int, index: tuple[slice, ...]) -> np.ndarray:
    """Rows of GGUF's llama q and k, where row 2i + j of a head is our row j K / 2 + i.

    Whole heads are read and then cut, since a run of our rows is none of the file's.
    """
    rows, rest = index[0], index[1:]
    head_dim = tensor.shape[0] // heads
    first, last = rows.start // head_dim, -(-rows.stop // head_dim)
    values = tensor.read((slice(first * head_dim, last * head_dim), *rest))
    paired = values.reshape(last - first, head_dim // 2, 2, *values.shape[1:])
    ours = paired.swapaxes(1, 2).reshape(values.shape)
    return ours[rows.start - first * head_dim : rows.stop - first * head_dim]


def export_folder(
    folder: str | Path,
    params: PyTree,
    config: DecoderConfig,
    *,
    max_length: int,
    tokenizer: Tokenizer | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a decoder as a Hugging Face folder that transformers can load.

    Parameters are fetched and written one layer's tensor at a time, in their own dtypes. With
    several processes every one of them calls this and the first one writes. ValueError: params
    are not what config says, a config or folder that cannot be written.
    """
    abstract = jax.eval_shape(decoder(config).init, jax.random.key(0))
    trees.check_same("params", params, "config", abstract)
    tensors = []
    for path, leaf in trees.flatten(params).items():
        kind, layers = _place(config, path)
        if config.scan and layers:
            tensors += [_fetched(_HF[kind].format(i), leaf, i) for i in layers]
        else:
            tensors.append(_fetched(_HF[kind].format(*layers), leaf, None))
    # Wider dtypes first, which keeps every tensor aligned.
    tensors.sort(key=lambda tensor: -tensor.dtype.itemsize)
    given = config_to_hf(config, max_length=max_length)
    given["torch_dtype"] = str(tensors[-1].dtype)
    if tokenizer is not None:
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        given |= {f"{role}_token_id": number for role, number in ids.items()}
    if jax.process_index() == 0:
        save = tokenizer.save if tokenizer is not None else lambda folder: None
        huggingface.write_folder(
            folder, tensors, given, write_rest=save, max_shard_bytes=max_shard_bytes
        )
    else:  # takes part in fetching what process 0 writes
        for tensor in tensors:
            tensor.read(...)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_folder")


def _fetched(name: str, leaf: Any, layer: int | None) -> LazyTensor:
    """A parameter, or one layer of it, as the file has it."""
    shape = leaf.shape if layer is None else leaf.shape[1:]
    transposed = len(shape) == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight"))

    def read(index: Index) -> np.ndarray:
        value = leaf if layer is None else leaf[layer]
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            value = multihost_utils.process_allgather(value, tiled=True)
        host = np.asarray(value)
        return (host.T if transposed else host)[index]

    return LazyTensor(name, shape[::-1] if transposed else shape, np.dtype(leaf.dtype), read)
