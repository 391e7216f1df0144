"""What is measured: answers along a training, all figures of a finished model, and the
log-probabilities that NPO and DPO compare with.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.unlearning.common import qa, scorers, writing
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.lm import Language
from kd_jax.evaluation import tofu
from kd_jax.launch import precompute
from kd_jax.launch.artefacts import Artefact
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
from kd_jax.objectives.score import answer_statistics
from kd_jax.types import Policy

# The parts whose reference log-probabilities are stored.
REFERRED = ("forget", "refusal")


def along_training(config: Common, language: Language, policy: Policy, steps: int) -> Evaluation:
    """Probabilities of answers along a training; texts are read when it is first run."""

    @functools.cache
    def sets() -> dict[str, Any]:
        questions = qa.load(config.data)
        return scorers.answer_sets(
            language.tokenizer(), questions, length=config.data.length, keep=config.evaluate_retain
        )

    def measure(params, carry, frozen) -> dict[str, Any]:
        score = scorers.make_scorer(
            language.model, policy, mesh=mesh_of(params), batch_size=config.score_batch
        )
        return scorers.probabilities(score(params, frozen, sets()))

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        return scorers.scorer_programs(language.model, policy, params, frozen, **_sizes(config))

    return Evaluation("answers", max(1, steps // config.evaluations), measure, plan)


def finished(config: Common, language: Language, artefact: Artefact) -> Compute:
    """All figures of a finished model. Rows are per question, in the order of the records."""

    def measure() -> tuple[None, Mapping[str, Any]]:
        mesh = make_mesh(config.mesh)
        weights = materialise(artefact.weights(), mesh, decoder.rules(language.config))
        return None, figures(config, language, weights, mesh)

    return Compute(measure, plan=functools.partial(_planned, config, language, artefact))


def figures(config: Common, language: Language, weights: Any, mesh: Any) -> dict[str, Any]:
    """What `finished` measures, of weights that lie on a mesh."""
    questions, tokenizer = qa.load(config.data), language.tokenizer()
    general = qa.general(config.data, config.general)
    length = config.data.length
    sets = scorers.answer_sets(tokenizer, questions, length=length, keep=config.evaluate_retain)
    for name, records in (*general.items(), ("holdout", questions.holdout)):
        if records:
            sets[name] = qa.answer_rows(tokenizer, records, length)
    asked = {"forget": questions.forget, "retain": questions.retain[: config.evaluate_retain]}
    asked |= general
    # Real authors and world facts come with three wrong answers.
    wrong = {name: min(config.wrong, 3) if name in general else config.wrong for name in asked}
    for name, records in asked.items():
        sets |= scorers.truth_sets(tokenizer, name, records, length=length, wrong=wrong[name])
    score = scorers.make_scorer(
        language.model,
        own_weights,
        mesh=mesh,
        batch_size=config.score_batch,
        scoring=answer_statistics,
    )
    scores = score({"model": weights, "aux": {}}, {}, sets)
    found = scorers.probabilities(scores) | scorers.memorised(scores)
    for name in asked:
        if wrong[name]:
            found |= scorers.truth_ratios(scores, name, wrong[name])
            if name in general:
                found |= scorers.choices(scores, name, wrong[name])
    if questions.holdout:
        found |= scorers.attacked(scores)
    if config.generate:
        for name, records in asked.items():
            found |= writing.recalls(config, language, weights, mesh, name, records)
    return found | _utility(found)


def _utility(found: Mapping[str, Any]) -> dict[str, float]:
    """TOFU's model utility where its nine figures are there; that of the answers to keep alone."""
    names = {"probability": "probability", "rouge": "rouge", "truth_ratio": "truth"}
    parts = {
        f"{group}/{metric}": float(found[f"{group}_{name}"])
        for group in tofu.SETS[1:]
        for metric, name in names.items()
        if f"{group}_{name}" in found
    }
    kept = [x for name, x in parts.items() if name.startswith("retain/")]
    utility = {"retain_utility": tofu.harmonic_mean(kept)}
    if len(parts) == len(tofu.UTILITY):
        utility["model_utility"] = tofu.model_utility(parts)
    return utility


def referred_rows(
    config: Common, language: Language, seed: int, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The answers to forget as training rows, and refusals of the same questions."""
    tokenizer, length = language.tokenizer(), config.data.length
    return {
        "forget": qa.answer_rows(tokenizer, records, length),
        "refusal": qa.refusal_rows(tokenizer, records, length, seed),
    }


def to_forget(questions: qa.Questions) -> Sequence[Mapping[str, Any]]:
    return questions.forget


def reference(
    config: Common,
    language: Language,
    seed: int,
    name: str,
    model: str,
    records: Callable[[qa.Questions], Sequence[Mapping[str, Any]]] = to_forget,
    depends: Any = None,
) -> Stage:
    """A stage that stores the log-probability of each answer to forget, and of its refusal, under
    the model that another stage made. records: which answers; other than all that are to be
    forgotten, `depends` has to tell them apart."""

    def score(found, rows) -> dict[str, Any]:
        mesh = make_mesh(config.mesh)
        weights = materialise(found[model].weights(), mesh, decoder.rules(language.config))
        scorer = scorers.make_scorer(
            language.model, own_weights, mesh=mesh, batch_size=config.score_batch
        )
        scores = scorer({"model": weights, "aux": {}}, {}, rows)
        return {part: scores[part]["log_prob"].astype(np.float32) for part in REFERRED}

    def data() -> dict[str, Any]:
        return referred_rows(config, language, seed, records(qa.load(config.data)))

    def plan(found, mesh) -> Mapping[str, Program]:
        weights = shapes_on(found[model].weights(), mesh, decoder.rules(language.config))
        params = {"model": weights, "aux": {}}
        return scorers.scorer_programs(language.model, own_weights, params, {}, **_sizes(config))

    return precompute.stage(
        name,
        score=score,
        data=data,
        model=lambda found: precompute.model_hash(found[model]),
        needs=(model,),
        depends={} if depends is None else depends,
        plan=plan,
    )


def _planned(
    config: Common, language: Language, artefact: Artefact, mesh: Any
) -> Mapping[str, Program]:
    """The programs of `figures`."""
    weights = shapes_on(artefact.weights(), mesh, decoder.rules(language.config))
    params = {"model": weights, "aux": {}}
    answers = scorers.scorer_programs(
        language.model, own_weights, params, {}, **_sizes(config), scoring=answer_statistics
    )
    return answers | writing.programs(config, language, weights, mesh)


def _sizes(config: Common) -> Any:
    return {"batch_size": config.score_batch, "length": config.data.length}
