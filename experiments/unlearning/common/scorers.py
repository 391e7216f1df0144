"""Scoring passes over sets of answers, and the figures of an unlearned model made from them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.unlearning.common.qa import Questions, answer_rows, rows
from kd_jax.data import arrays, shapes
from kd_jax.evaluation import membership, tofu
from kd_jax.launch.evaluation import evaluate, program
from kd_jax.launch.stages import Program, mesh_of
from kd_jax.objectives.score import sequence_scores
from kd_jax.steps import make_eval_step
from kd_jax.types import Frozen, Model, Objective, Params, Policy

Rows = Mapping[str, np.ndarray]
# (params, frozen, {set: text batch}) -> {set: {row: [N]}}
Scorer = Callable[[Params, Frozen, Mapping[str, Any]], dict[str, Rows]]
Scoring = Callable[..., Objective]

# Which truth ratio a set has: forgotten where it tells nothing, kept where it tells right.
TRUTH = {
    "forget": tofu.forget_truth_ratio,
    "retain": tofu.retain_truth_ratio,
    "real_authors": tofu.retain_truth_ratio,
    "world_facts": tofu.retain_truth_ratio,
}


@functools.cache  # so that all stages share one compilation
def _step(scoring: Scoring, model: Model, policy: Policy) -> Any:
    return make_eval_step(scoring(model, policy=policy))


def make_scorer(
    model: Model, policy: Policy, *, mesh: Any, batch_size: int, scoring: Scoring = sequence_scores
) -> Scorer:
    """One pass over the rows of all sets together."""
    step = _step(scoring, model, policy)

    def score(params: Params, frozen: Frozen, sets: Mapping[str, Any]) -> dict[str, Rows]:
        everything = arrays.concatenate(list(sets.values()))
        everything["index"] = np.arange(arrays.size(everything), dtype=np.int32)
        _, found = evaluate(step, params, {}, frozen, everything, batch_size=batch_size, mesh=mesh)
        ends = np.cumsum([arrays.size(part) for part in sets.values()])[:-1]
        parts = {name: np.split(x, ends) for name, x in found.items()}
        return {
            name: {row: pieces[i] for row, pieces in parts.items()} for i, name in enumerate(sets)
        }

    return score


def scorer_programs(
    model: Model,
    policy: Policy,
    params: Params,
    frozen: Frozen,
    *,
    batch_size: int,
    length: int,
    scoring: Scoring = sequence_scores,
) -> dict[str, Program]:
    """What a scorer runs, for a plan."""
    step, mesh = _step(scoring, model, policy), mesh_of(params)
    batch = shapes.text(batch_size, length)
    return {"answers": program(step, params, {}, frozen, batch, mesh=mesh)}


def loss(scores: Rows) -> np.ndarray:
    """Mean negative log-likelihood of a token, [N]: exp(-loss) is TOFU's probability."""
    return -scores["log_prob"].astype(np.float64) / scores["tokens"]


def answer_sets(tokenizer: Any, questions: Questions, *, length: int, keep: int) -> dict[str, Any]:
    """The answers to forget, and those of the first `keep` questions to retain."""
    return {
        "forget": answer_rows(tokenizer, questions.forget, length),
        "retain": answer_rows(tokenizer, questions.retain[:keep], length),
    }


def truth_sets(
    tokenizer: Any, name: str, records: Sequence[Mapping[str, Any]], *, length: int, wrong: int
) -> dict[str, Any]:
    """Paraphrased answers (where a set has them) and `wrong` perturbed ones of its questions."""
    found = {}
    right = [record.get("paraphrased_answer", "") for record in records]
    if all(right):
        found[f"{name}_paraphrased"] = rows(tokenizer, records, right, length)
    for i in range(wrong):
        answers = [record["perturbed_answer"][i] for record in records]
        found[f"{name}_perturbed_{i}"] = rows(tokenizer, records, answers, length)
    return found


def probabilities(scores: Mapping[str, Rows]) -> dict[str, Any]:
    """Mean probability and loss of the answers of each set, and the loss of each question."""
    found: dict[str, Any] = {}
    for name in ("forget", "retain"):
        losses = loss(scores[name])
        found[f"{name}_probability"] = float(tofu.probability(losses).mean())
        found[f"{name}_nll"] = float(losses.mean())
        found[f"{name}_loss"] = losses
    return found


def truth_ratios(scores: Mapping[str, Rows], name: str, wrong: int) -> dict[str, Any]:
    """The geometric truth ratio of each question of a set and its aggregate (card M1)."""
    right = loss(scores.get(f"{name}_paraphrased", scores[name]))
    losses = np.stack([loss(scores[f"{name}_perturbed_{i}"]) for i in range(wrong)], 1)
    ratio = tofu.truth_ratio(right, losses)
    return {f"{name}_truth_ratio": ratio, f"{name}_truth": float(TRUTH[name](ratio))}


def choices(scores: Mapping[str, Rows], name: str, wrong: int) -> dict[str, Any]:
    """The probability of the right one of a set's answers: real authors and world facts."""
    losses = np.stack([loss(scores[f"{name}_perturbed_{i}"]) for i in range(wrong)], 1)
    chosen = tofu.choice_probability(loss(scores[name]), losses)
    return {f"{name}_probability": float(chosen.mean())}


def memorised(scores: Mapping[str, Rows]) -> dict[str, Any]:
    """Exact memorisation and extraction strength of the answers to forget and to keep."""
    found: dict[str, Any] = {}
    for name in ("forget", "retain"):
        for row in ("memorisation", "extraction"):
            found[f"{name}_{row}"] = float(np.nanmean(scores[name][row]))
            found[f"{name}_{row}_rows"] = scores[name][row]
    return found


def attacked(scores: Mapping[str, Rows]) -> dict[str, Any]:
    """How well membership of the forget set is told from the holdout's: AUC of each attack."""
    found: dict[str, Any] = {}
    attacks = {name: loss(scores[name]) for name in ("forget", "holdout")}
    found["loss_auc"] = membership.auc(attacks["forget"], attacks["holdout"])
    for attack in ("min_k", "min_k_pp"):
        members, others = (scores[name][attack] for name in ("forget", "holdout"))
        found[f"{attack}_auc"] = membership.auc(members, others)
    return found
