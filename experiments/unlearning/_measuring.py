"""What npo_tofu measures: answers along a training, all of a finished model's scores, and what NPO
compares with.

`config` is that of the experiment.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.unlearning import _questions, _scores
from experiments.unlearning._language import Language
from kd_jax.launch import precompute
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import (
    Compute,
    Evaluation,
    Program,
    Stage,
    materialise,
    mesh_of,
    shapes_on,
)
from kd_jax.models import decoder
from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Policy


def along_training(config: Any, language: Language, policy: Policy, steps: int) -> Evaluation:
    """Probabilities of answers along a training; texts are read when it is first run."""

    @functools.cache
    def sets() -> dict[str, Any]:
        questions = _questions.load(config.data)
        return _scores.answer_sets(
            language.tokenizer(), questions, length=config.data.length, keep=config.evaluate_retain
        )

    def measure(params, carry, frozen) -> dict[str, Any]:
        score = _scores.make_scorer(
            language.model, policy, mesh=mesh_of(params), batch_size=config.score_batch
        )
        return _scores.probabilities(score(params, frozen, sets()))

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        return _scores.scorer_programs(language.model, policy, params, frozen, **_sizes(config))

    return Evaluation("answers", max(1, steps // config.evaluations), measure, plan)


def finished(config: Any, language: Language, artefact: Any) -> Compute:
    """The finished model's scores of all answers: probability, truth ratio."""

    def measure() -> tuple[None, Mapping[str, Any]]:
        questions, tokenizer = _questions.load(config.data), language.tokenizer()
        limits = {"length": config.data.length, "keep": config.evaluate_retain}
        sets = _scores.answer_sets(tokenizer, questions, **limits)
        if config.wrong:
            sets |= _scores.truth_sets(tokenizer, questions, wrong=config.wrong, **limits)
        scores = _scored(config, language, artefact, sets)
        found = _scores.probabilities(scores)
        if config.wrong:
            found |= _scores.truth_ratios(scores, config.wrong)
        return None, found

    return Compute(measure, plan=functools.partial(_planned, config, language, artefact))


def forget_rows(config: Any, language: Language) -> dict[str, Any]:
    """The answers to forget, as training rows."""
    records = _questions.load(config.data).forget
    return _questions.answer_rows(language.tokenizer(), records, config.data.length)


def reference(config: Any, language: Language, name: str, model: str, depends: Any) -> Stage:
    """A stage that stores the log-probability of each answer to forget under a stage's model."""

    def score(found, rows) -> dict[str, Any]:
        scores = _scored(config, language, found[model], {"forget": rows})
        return {"log_prob": scores["forget"].log_prob.astype(np.float32)}

    return precompute.stage(
        name,
        score=score,
        data=lambda: forget_rows(config, language),
        model=lambda found: precompute.model_hash(found[model]),
        needs=(model,),
        depends=depends,
        plan=lambda found, mesh: _planned(config, language, found[model], mesh),
    )


def _scored(config: Any, language: Language, artefact: Any, sets: Mapping[str, Any]) -> Any:
    """The scores of each set under a finished model."""
    mesh = make_mesh(config.mesh)
    weights = materialise(artefact.weights(), mesh, decoder.rules(language.config))
    score = _scores.make_scorer(
        language.model, own_weights, mesh=mesh, batch_size=config.score_batch
    )
    return score({"model": weights, "aux": {}}, {}, sets)


def _planned(config: Any, language: Language, artefact: Any, mesh: Any) -> Mapping[str, Program]:
    weights = shapes_on(artefact.weights(), mesh, decoder.rules(language.config))
    params = {"model": weights, "aux": {}}
    return _scores.scorer_programs(language.model, own_weights, params, {}, **_sizes(config))


def _sizes(config: Any) -> dict[str, int]:
    return {"batch_size": config.score_batch, "length": config.data.length}
