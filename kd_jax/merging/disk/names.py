"""What a tensor's name says: which layer it is of, and whether it stands before the layers."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_LAYER = re.compile(r"((?:[^.]+\.)*?(?:layers?|h|blocks?|resblocks))\.(\d+)\.(.+)")
_BEFORE = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_positions|embeddings?|embed_in|tok_embeddings|wte|wpe"
    r"|(?:word|position)_embeddings(?:_layernorm)?)(?:\.|$)"
)
_TABLE = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|tok_embeddings|wte|word_embeddings)\.weight")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)(?:\.|$)")


class Layer(NamedTuple):
    """A name as stack.index.rest, "model.layers", 3, "mlp.up_proj.weight"."""

    stack: str
    index: int
    rest: str


def layer_of(name: str) -> Layer | None:
    """The layer that a tensor belongs to; None for embeddings, the final norm, a head."""
    found = _LAYER.fullmatch(name)
    return Layer(found[1], int(found[2]), found[3]) if found else None


def name_of(layer: Layer) -> str:
    return f"{layer.stack}.{layer.index}.{layer.rest}"


def depths(names: Iterable[str]) -> dict[str, float]:
    """Where each tensor stands: 0 in the first layer of its stack, 1 in the last, 0 outside layers.

    The only layer of a stack is at 1.
    """
    layers = {name: layer_of(name) for name in names}
    last: dict[str, int] = {}
    for layer in layers.values():
        if layer:
            last[layer.stack] = max(last.get(layer.stack, 0), layer.index)

    def depth(layer: Layer | None) -> float:
        if layer is None:
            return 0.0
        return layer.index / last[layer.stack] if last[layer.stack] else 1.0

    return {name: depth(layer) for name, layer in layers.items()}


def is_before(name: str) -> bool:
    """Whether it is an embedding: before the layers."""
    return bool(_BEFORE.search(name))


def is_table(name: str) -> bool:
    """Whether it holds a row for each token; a tied head is this table."""
    return bool(_TABLE.search(name))


def is_head(name: str) -> bool:
    """Whether it maps to the vocabulary."""
    return bool(_HEAD.search(name))


def has_vocabulary(name: str) -> bool:
    """Whether its rows are the vocabulary's (or an embedding's positions)."""
    return is_before(name) or is_head(name)
