"""The language model of an unlearning run: pretrained, from files, or a small one from scratch."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from experiments.unlearning.common import qa
from kd_jax.data.vocabulary import WordTokenizer
from kd_jax.launch import language, runtime
from kd_jax.launch import weights as weights_lib
from kd_jax.launch.language import Language
from kd_jax.launch.stages import materialise
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder, lora, pretrained
from kd_jax.models.decoder import DecoderConfig
from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Frozen, Params, Policy, TrainState

# One layer, unrolled: a smoke run spends its time compiling.
TINY = DecoderConfig(
    vocab=512,
    width=64,
    depth=1,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp=128,
    tied=True,
    scan=False,
    remat=False,
)

# The seven projections of every block.
PROJECTIONS = r"layers/(\d+/)?(attn/[qkvo]|mlp/(gate|up|down))/kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA; rank 0 trains all parameters."""

    rank: int = 0
    """Rank of the adapters on all projections; 0 trains the whole model instead."""
    alpha: float = 16.0
    """The adapters' product is scaled by alpha / rank."""

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"adapter.rank: got {self.rank}, takes numbers from 0")


def open_language(path: str | None, like: DecoderConfig, data: qa.Data, seed: int) -> Language:
    """The pretrained model of a path (`launch.language`); without one, `like` from scratch.

    The vocabulary of a model from scratch is the words of the questions.
    """
    if path is None:
        tokenizer = _words(data)
        # Rounded up, so that the vocabulary divides over the axes of a mesh.
        config = dataclasses.replace(like, vocab=-(-tokenizer.vocab_size // 64) * 64)
        model = decoder.decoder(config)
        key = jax.random.key(seed)
        return Language(config, model, lambda: tokenizer, weights_lib.from_init(model.init, key))
    return language.open_language(path, like)


@functools.cache
def _words(data: qa.Data) -> WordTokenizer:
    return WordTokenizer.from_texts(qa.texts(qa.load(data)))


class Tuning(NamedTuple):
    """What of a model is trained: its initial weights, what stays frozen, and how they join."""

    weights: Weights
    frozen: Weights | None
    policy: Policy
    rules: Any
    frozen_rules: Any

    def result(self, state: TrainState, frozen: Frozen) -> Any:
        """The plain weights after a training: adapters are merged into them."""
        return lora.merge(self.policy(state.params, frozen))


def tuning(adapter: Adapter, config: DecoderConfig, start: Weights, seed: int) -> Tuning:
    """All of `start`, or adapters on a frozen `start`."""
    rules = decoder.rules(config)
    if adapter.rank == 0:
        return Tuning(start, None, own_weights, rules, {})

    def init(key: jax.Array) -> Any:
        return lora.init(key, start.abstract, PROJECTIONS, rank=adapter.rank)

    adapters = weights_lib.from_init(init, jax.random.key(seed))
    return Tuning(
        adapters,
        weights_lib.joined(base=start),
        _attached(adapter.alpha),
        lora.lora_rules(rules, adapters.abstract),
        {"base": rules},
    )


@functools.cache  # one function for all stages, so that they share compilations
def _attached(alpha: float) -> Policy:
    def policy(params: Params, frozen: Frozen) -> Any:
        return lora.attach(frozen["base"], params["model"], alpha=alpha)

    return policy


def export(language: Language, weights: Weights, mesh: Mesh, folder: Path) -> None:
    """The weights as a Hugging Face folder, with the tokeniser of the model they came from.

    A folder that is there is whole, and from the same weights: a run's folder has one identity.
    """
    if runtime.everywhere(not folder.exists()):
        pretrained.export_folder(
            folder,
            materialise(weights, mesh, decoder.rules(language.config)),
            language.config,
            max_length=language.max_length,
            tokenizer=language.tokenizer(),
        )
