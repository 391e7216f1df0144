"""What the stages of likelihood_displacement compute, each of one seed."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments.preference.parts import displaced_training, refusals
from experiments.preference.parts.displaced_training import Programs
from kd_jax.evaluation import displacement
from kd_jax.launch.language import Language

SCORES = ("ches", "ches_normalised", "edit_similarity", "last_state_cosine")


def one_word(
    found: Programs, language: Language, base: Any, steps: int, seed: int
) -> dict[str, Any]:
    """DPO that prefers the chosen word to the rejected one, on all questions but four.

    Changes of the log-probability of chosen, rejected and third word after the four, the same
    probabilities, the words that gain most, and how far gains follow the unembedding.
    """
    order = np.random.default_rng(seed).permutation(refusals.YES_NO)
    learnt, held = (displaced_training.words(language, list(x)) for x in (order[:-4], order[-4:]))
    adapters = displaced_training.trained(found, base, learnt, steps, seed)
    start = displaced_training.fresh(found, base, learnt)
    before, after = (
        np.asarray(found.following(x, base, held["chosen"]), np.float64) for x in (start, adapters)
    )
    ids = [displaced_training.word(language, text) for text in refusals.ANSWERS]
    change = (after - before).mean(0)
    probability = np.exp(after).mean(0) - np.exp(before).mean(0)
    top = np.argsort(-probability)[:8]
    likely = np.argsort(-before.mean(0))[:1000]
    rows = np.asarray(found.unembedding(base, held["chosen"]), np.float64)
    pull = rows[likely] @ (rows[ids[0]] - rows[ids[1]])
    return {
        "changes": change[ids],
        "before": np.exp(before).mean(0)[ids],
        "after": np.exp(after).mean(0)[ids],
        "gains": probability[top],
        "winners": "|".join(language.tokenizer().decode([int(i)]) for i in top),
        "follows": _spearman(pull, change[likely]),
    }


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of ranks, ties sharing theirs."""
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def by_pairs(
    found: Programs, language: Language, base: Any, count: int, steps: int, seed: int
) -> dict[str, Any]:
    """Scores of pairs before training, and each one's changes by training on it alone."""
    texts = refusals.draw(count, seed)
    batch = displaced_training.encoded(language, texts)
    scores = {name: np.asarray(x) for name, x in found.scores(base, batch).items()}
    encode = language.tokenizer().encode
    scores["edit_similarity"] = np.array(
        [displacement.edit_similarity(encode(chosen), encode(other)) for _, chosen, other in texts]
    )
    chosen, rejected = found.alone(jax.random.key(seed), base, batch, steps)
    changes = displaced_training.per_token(chosen, batch["chosen"])
    correlations = {f"spearman_{name}": _spearman(scores[name], changes) for name in SCORES}
    falling = float((changes < 0).mean())
    return {
        **scores,
        **correlations,
        "chosen_changes": changes,
        "rejected_changes": displaced_training.per_token(rejected, batch["rejected"]),
        "falling": falling,
    }


def kept(
    found: Programs,
    language: Language,
    base: Any,
    steps: int,
    seed: int,
    scores: np.ndarray,
    share: float,
) -> dict[str, Any]:
    """Training together on the pairs of lowest CHES, and on as many at random.

    For each the change of log p a token of the chosen answers trained on, and that of all refusals
    less that of all compliances after the questions that are left out.
    """
    texts = refusals.draw(len(scores), seed)
    lowest = displacement.least_displacing(scores, share)
    rng = np.random.default_rng(seed)
    arms: Mapping[str, np.ndarray] = {
        "lowest": lowest,
        "random": np.sort(rng.choice(len(scores), len(lowest), replace=False)),
    }
    pool = (*refusals.REFUSALS, *refusals.COMPLIANCES)
    held = displaced_training.answers(language, refusals.REQUESTS[-4:], pool)
    values = {}
    for name, rows in arms.items():
        batch = displaced_training.encoded(language, [texts[i] for i in rows])
        start = displaced_training.fresh(found, base, batch)
        adapters = displaced_training.trained(found, base, batch, steps, seed)

        def change(part: Any, start: Any = start, adapters: Any = adapters) -> np.ndarray:
            old, new = (np.asarray(found.log_probs(x, base, part)) for x in (start, adapters))
            return displaced_training.per_token(new - old, part)

        values[f"{name}_chosen"] = float(change(batch["chosen"]).mean())
        values[f"{name}_rejected"] = float(change(batch["rejected"]).mean())
        by_answer = change(held).reshape(-1, len(pool))
        refusing, complying = np.split(by_answer, [len(refusals.REFUSALS)], axis=1)
        values[f"{name}_refusals"] = float(refusing.mean())
        values[f"{name}_compliances"] = float(complying.mean())
    return values
