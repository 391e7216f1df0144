"""Trainings of small language models on rows that another stage made."""

import functools
from collections.abc import Callable, Sequence

import jax

from experiments.distillation.common.learning import Learning
from kd_jax.data import shapes, sources
from kd_jax.data.arrays import Arrays
from kd_jax.launch import self_play
from kd_jax.launch.stages import Evaluation, Training
from kd_jax.launch.weights import Weights, from_init
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.steps import make_train_step
from kd_jax.types import Objective


def training(
    model: DecoderConfig,
    objective: Objective,
    learning: Learning,
    rows: Callable[[], Arrays],
    *,
    name: str,
    length: int,
    seed: int,
    measured: Evaluation,
    start: Weights | None = None,
    columns: Sequence[str] | None = None,
) -> Training:
    """rows() -> text of `length` predictions, loaded when the training runs; name and seed decide
    their order. start: what it goes on from, or a fresh model of the seed. columns: where the rows
    are pairs, the models that they have log-probabilities of.
    """

    @functools.cache
    def source() -> sources.Source:
        return sources.array_batches(rows(), seed=seed, name=name, batch_size=learning.batch_size)

    size = learning.batch_size
    fresh = from_init(decoder.decoder(model).init, jax.random.key(seed))
    return Training(
        step=make_train_step(objective, learning.optimizer()),
        weights=fresh if start is None else start,
        batches=lambda step, own: source()(step, own),
        batch=shapes.text(size, length)
        if columns is None
        else self_play.shapes_of(size, length, columns),
        batch_size=size,
        steps=learning.steps,
        rules=decoder.rules(model),
        seed=seed,
        evaluations=(measured,),
    )
