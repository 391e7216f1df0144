"""Stages of the family's language experiments: a teacher, and students that learn from it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from experiments.distillation.common import measuring
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.config import Common
from experiments.distillation.common.learning import Learning
from kd_jax.data import shapes, sources
from kd_jax.launch import weights
from kd_jax.launch.config import identity
from kd_jax.launch.stages import Stage, Training
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import Objective

Rows = Callable[[], Mapping[str, Any]]


def teacher(config: Common) -> Stage:
    """A language model of the text, in the stage "teacher"."""
    objective = supervise(decoder.decoder(config.teacher), {"nll": next_token_nll})
    shared = {"text": identity(config.text), "seed": config.seed}
    return Stage(
        "teacher",
        lambda _: training(config, config.teacher, objective, config.learn_teacher, config.seed),
        (),
        shared | {x: identity(getattr(config, x)) for x in ("teacher", "learn_teacher")},
    )


def student_depends(config: Common, seed: int) -> dict[str, Any]:
    """What a student of a seed depends on besides its loss and its teacher."""
    return {
        "student": identity(config.student),
        "learn": identity(config.learn),
        "measured": [config.prompt, config.evaluations, config.score_batch],
        "seed": seed,
    }


def student(
    config: Common,
    objective: Objective,
    seed: int,
    found: Mapping[str, Any],
    rows: Rows | None = None,
) -> Training:
    """A student that learns from frozen["teacher"] and is measured against it along the way."""
    measured = measuring.Measured(
        config.text, config.student, config.teacher, config.prompt, config.score_batch, seed
    )
    return training(config, config.student, objective, config.learn, seed, rows)._replace(
        frozen=weights.joined(teacher=found["teacher"].weights()),
        frozen_rules={"teacher": decoder.rules(config.teacher)},
        evaluations=(measuring.along(measured, max(1, config.learn.steps // config.evaluations)),),
    )


class Reads(Protocol):
    """A config whose models read a text."""

    @property
    def text(self) -> text_lib.Text: ...


def training(
    config: Reads,
    model: DecoderConfig,
    objective: Objective,
    learning: Learning,
    seed: int,
    rows: Rows | None = None,
) -> Training:
    """A model from scratch; rows() are what it learns, by default all of the text."""

    @functools.cache
    def source() -> sources.Source:
        train = text_lib.rows(text_lib.load(config.text).train) if rows is None else rows()
        return sources.array_batches(train, seed=seed, name="text", batch_size=learning.batch_size)

    return Training(
        step=make_train_step(objective, learning.optimizer()),
        weights=weights.from_init(decoder.decoder(model).init, jax.random.key(seed)),
        batches=lambda step, own: source()(step, own),
        batch=shapes.text(learning.batch_size, config.text.length),
        batch_size=learning.batch_size,
        steps=learning.steps,
        rules=decoder.rules(model),
        seed=seed,
    )
