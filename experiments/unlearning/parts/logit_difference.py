"""The model that uld_small measures: the assistant's data, and the scores of a difference."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.unlearning.common import qa, scorers
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.lm import Language
from kd_jax.data import arrays, pairs, sources
from kd_jax.evaluation import tofu
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Evaluation, Program, materialise, mesh_of, shapes_on
from kd_jax.models import decoder
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.unlearn.assistant import logit_difference_scores
from kd_jax.types import Model, Policy

WHOLE = "whole"  # in frozen: the model that the assistant is subtracted from


class Difference(NamedTuple):
    """A model, an assistant of its first layers, and how their logits are combined."""

    config: Common
    whole: Language
    assistant: Language
    weight: float
    top: float

    def along_training(self, policy: Policy, steps: int) -> Evaluation:
        """Probabilities of answers, while the assistant is trained by `policy`."""

        @functools.cache
        def sets() -> dict[str, Any]:
            return self._answers()

        def measure(params, carry, frozen) -> dict[str, Any]:
            return scorers.probabilities(
                self._scorer(policy, mesh_of(params))(params, frozen, sets())
            )

        def plan(params, carry, frozen) -> Mapping[str, Program]:
            return self._programs(policy, params, frozen)

        return Evaluation("answers", max(1, steps // self.config.evaluations), measure, plan)

    def finished(self, whole: Artefact, assistant: Artefact) -> Compute:
        """The figures of `measuring.finished` that a difference has."""

        def placed(make: Any, mesh: Any) -> tuple[Any, Any]:
            trees = (
                make(artefact.weights(), mesh, decoder.rules(language.config))
                for artefact, language in ((assistant, self.assistant), (whole, self.whole))
            )
            return {"model": next(trees), "aux": {}}, {WHOLE: next(trees)}

        def measure() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(self.config.mesh)
            return None, self._figures(*placed(materialise, mesh), mesh)

        def plan(mesh: Any) -> Mapping[str, Program]:
            return self._programs(own_weights, *placed(shapes_on, mesh))

        return Compute(measure, plan=plan)

    def _answers(self) -> dict[str, Any]:
        config, questions = self.config, qa.load(self.config.data)
        limits = {"length": config.data.length, "keep": config.evaluate_retain}
        return scorers.answer_sets(self.whole.tokenizer(), questions, **limits)

    def _figures(self, params: Any, frozen: Any, mesh: Any) -> dict[str, Any]:
        config, questions = self.config, qa.load(self.config.data)
        asked = {"forget": questions.forget, "retain": questions.retain[: config.evaluate_retain]}
        sets = self._answers()
        for name, records in asked.items():
            sets |= scorers.truth_sets(
                self.whole.tokenizer(),
                name,
                records,
                length=config.data.length,
                wrong=config.wrong,
            )
        scores = self._scorer(own_weights, mesh)(params, frozen, sets)
        found = scorers.probabilities(scores)
        for name in asked:
            found |= scorers.truth_ratios(scores, name, config.wrong)
        kept = [found["retain_probability"], found["retain_truth"]]
        return found | {"retain_utility": tofu.harmonic_mean(kept)}

    def _scorer(self, policy: Policy, mesh: Any) -> scorers.Scorer:
        return scorers.make_scorer(
            self.assistant.model,
            policy,
            mesh=mesh,
            batch_size=self.config.score_batch,
            scoring=_scoring(self.whole.model, self.weight, self.top),
        )

    def _programs(self, policy: Policy, params: Any, frozen: Any) -> Mapping[str, Program]:
        return scorers.scorer_programs(
            self.assistant.model,
            policy,
            params,
            frozen,
            batch_size=self.config.score_batch,
            length=self.config.data.length,
            scoring=_scoring(self.whole.model, self.weight, self.top),
        )


@functools.cache  # one function, so that all stages share one compilation
def _scoring(whole: Model, weight: float, top: float) -> Any:
    return functools.partial(
        logit_difference_scores, whole, weight=weight, top=top, base_policy=frozen_weights(WHOLE)
    )


def augmented(
    config: Common, tokenizer: Any, *, paraphrases: bool, wrong: bool, seed: int, batch_size: int
) -> sources.Source:
    """Batches of what the assistant remembers ("forget") and of what it is uniform on ("retain").

    paraphrases: the answers to forget again, to the questions in other words. wrong: wrong answers
    to them are among what it is uniform on; the first `config.wrong_answers` of a question are left
    to the truth ratio.
    """
    questions, length = qa.load(config.data), config.data.length
    forget = [qa.answer_rows(tokenizer, questions.forget, length)]
    retain = [qa.answer_rows(tokenizer, questions.retain, length)]
    if paraphrases:
        asked = [{**r, "question": r["paraphrased_question"]} for r in questions.forget]
        forget.append(qa.answer_rows(tokenizer, asked, length))
    if wrong:
        for i in range(config.wrong_answers, config.data.perturbed):
            answers = [record["perturbed_answer"][i] for record in questions.forget]
            retain.append(qa.rows(tokenizer, questions.forget, answers, length))
    return pairs.forget_retain(
        {"forget": _numbered(forget)},
        {"retain": _numbered(retain)},
        seed=seed,
        batch_size=batch_size,
    )


def _numbered(parts: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    rows = arrays.concatenate(parts)
    return rows | {"index": np.arange(arrays.size(rows), dtype=np.int32)}
