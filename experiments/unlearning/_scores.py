"""What is measured of an unlearned model: TOFU's numbers, per question and along training."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.unlearning._questions import Questions, answer_rows, rows
from kd_jax.data import arrays, shapes
from kd_jax.evaluation import tofu
from kd_jax.launch.evaluation import evaluate, program
from kd_jax.launch.stages import Program, mesh_of
from kd_jax.objectives.score import sequence_scores
from kd_jax.steps import make_eval_step
from kd_jax.types import Frozen, Model, Params, Policy

PyTree = Any
Losses = dict[str, np.ndarray]


class Sequences(NamedTuple):
    """Scores of rows: log_prob [N], a sum over the answer's tokens, and their number [N]."""

    log_prob: np.ndarray
    tokens: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """Mean negative log-likelihood of a token, [N]: exp(-loss) is TOFU's probability."""
        return -self.log_prob / self.tokens


Scorer = Callable[[Params, Frozen, Mapping[str, Any]], dict[str, Sequences]]


@functools.cache  # so that all stages share one compilation
def _scoring(model: Model, policy: Policy) -> Any:
    return make_eval_step(sequence_scores(model, policy=policy))


def make_scorer(model: Model, policy: Policy, *, mesh: Any, batch_size: int) -> Scorer:
    """score(params, frozen, {name: text batch}) -> {name: Sequences}: one pass over all rows."""
    step = _scoring(model, policy)

    def score(params: Params, frozen: Frozen, sets: Mapping[str, Any]) -> dict[str, Sequences]:
        everything = arrays.concatenate(list(sets.values()))
        everything["index"] = np.arange(arrays.size(everything), dtype=np.int32)
        _, found = evaluate(step, params, {}, frozen, everything, batch_size=batch_size, mesh=mesh)
        ends = np.cumsum([arrays.size(part) for part in sets.values()])[:-1]
        parts = [np.split(found[name], ends) for name in Sequences._fields]
        return {name: Sequences(*p) for name, *p in zip(sets, *parts, strict=True)}

    return score


def scorer_programs(
    model: Model, policy: Policy, params: Params, frozen: Frozen, *, batch_size: int, length: int
) -> dict[str, Program]:
    """What a scorer runs, for a plan."""
    step, mesh = _scoring(model, policy), mesh_of(params)
    batch = shapes.text(batch_size, length)
    return {"answers": program(step, params, {}, frozen, batch, mesh=mesh)}


def answer_sets(tokenizer: Any, questions: Questions, *, length: int, keep: int) -> dict[str, Any]:
    """The answers to forget, and those of the first `keep` questions to retain."""
    return {
        "forget": answer_rows(tokenizer, questions.forget, length),
        "retain": answer_rows(tokenizer, questions.retain[:keep], length),
    }


def truth_sets(
    tokenizer: Any, questions: Questions, *, length: int, keep: int, wrong: int
) -> dict[str, Any]:
    """Paraphrased answers and `wrong` perturbed ones of the same questions."""
    found = {}
    for name, records in (("forget", questions.forget), ("retain", questions.retain[:keep])):
        right = [record["paraphrased_answer"] for record in records]
        found[f"{name}_paraphrased"] = rows(tokenizer, records, right, length)
        for i in range(wrong):
            answers = [record["perturbed_answer"][i] for record in records]
            found[f"{name}_perturbed_{i}"] = rows(tokenizer, records, answers, length)
    return found


def probabilities(scores: Mapping[str, Sequences]) -> dict[str, Any]:
    """Mean probability and loss of the answers of each set, and the loss of each question."""
    found: dict[str, Any] = {}
    for name in ("forget", "retain"):
        loss = scores[name].loss
        found[f"{name}_probability"] = float(tofu.probability(loss).mean())
        found[f"{name}_nll"] = float(loss.mean())
        found[f"{name}_loss"] = loss
    return found


def truth_ratios(scores: Mapping[str, Sequences], wrong: int) -> dict[str, Any]:
    """The geometric truth ratio of each question and its aggregate for each set (card M1)."""
    found: dict[str, Any] = {}
    for name, aggregate in (
        ("forget", tofu.forget_truth_ratio),
        ("retain", tofu.retain_truth_ratio),
    ):
        right = scores[f"{name}_paraphrased"].loss
        losses = np.stack([scores[f"{name}_perturbed_{i}"].loss for i in range(wrong)], 1)
        ratio = tofu.truth_ratio(right, losses)
        found[f"{name}_truth_ratio"] = ratio
        found[f"{name}_truth"] = float(aggregate(ratio))
    return found
