"""Small character language models: how they learn, and what they can do."""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import runs
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text
from experiments.merging.lm import words
from experiments.unlearning.common import lm
from kd_jax.launch.config import identity
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.stages import Training
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.score import answer_statistics
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_eval_step


class Learns(Protocol):
    """A config of a model that is pretrained."""

    @property
    def text(self) -> Text: ...
    @property
    def model(self) -> DecoderConfig: ...
    @property
    def pretrain(self) -> Learning: ...


def shared(config: Learns, seed: int) -> dict[str, Any]:
    """What a pretrained model depends on, besides its rows."""
    return {x: identity(getattr(config, x)) for x in ("text", "model", "pretrain")} | {"seed": seed}


def training(
    config: Learns, learning: Learning, seed: int, rows: runs.Rows, start: Weights | None = None
) -> Training:
    """Next-token training on rows(), from scratch or from the weights of an earlier stage."""
    objective = supervise(decoder.decoder(config.model), {"nll": next_token_nll})
    made = runs.training(config, config.model, objective, learning, seed, rows)
    return made if start is None else made._replace(weights=start)


def patching(
    config: Learns,
    learning: Learning,
    adapter: lm.Adapter,
    seed: int,
    rows: runs.Rows,
    start: Weights,
) -> Training:
    """As `training`, of adapters on frozen weights; the adapters alone are what is kept."""
    tune = lm.tuning(adapter, config.model, start, seed)
    model = decoder.decoder(config.model)
    objective = supervise(model, {"nll": next_token_nll}, policy=tune.policy)
    made = runs.training(config, config.model, objective, learning, seed, rows)
    return made._replace(
        weights=tune.weights, frozen=tune.frozen, rules=tune.rules, frozen_rules=tune.frozen_rules
    )


def mixed(text: Text, share: float) -> np.ndarray:
    """Rows of the text, and of the task, so that these are a share of all rows."""
    plain = text_lib.load(text).train
    return np.concatenate([plain, words.task(text, round(len(plain) * share / (1 - share)))])


@functools.cache  # one step for all models, so that they share compilations
def _step(model: DecoderConfig) -> Any:
    return make_eval_step(answer_statistics(decoder.decoder(model)))


def _scores(
    model: DecoderConfig, params: Any, batch: Mapping[str, Any], *, mesh: Mesh, rows: int
) -> Mapping[str, np.ndarray]:
    weights = {"model": params, "aux": {}}
    return evaluate(_step(model), weights, {}, {}, batch, batch_size=rows, mesh=mesh)[1]


def right(model: DecoderConfig, params: Any, batch: Mapping[str, Any], **sizes: Any) -> float:
    """Per cent of the letters of an answer that are the likeliest, given the right ones before.

    batch: `words.questions`; a mean over its words.
    """
    return 100 * float(_scores(model, params, batch, **sizes)["memorisation"].mean())


def nll(model: DecoderConfig, params: Any, batch: Mapping[str, Any], **sizes: Any) -> float:
    """Mean over tokens, in nats."""
    found = _scores(model, params, batch, **sizes)
    return float(-found["log_prob"].sum(dtype=np.float64) / found["tokens"].sum())
