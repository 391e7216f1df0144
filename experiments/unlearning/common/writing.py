"""What a model writes in answer to questions, and how much of the true answer is in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.unlearning.common.config import Common
from experiments.unlearning.common.lm import Language
from kd_jax.data import templates
from kd_jax.evaluation import rouge
from kd_jax.launch import generation
from kd_jax.launch.stages import Program


def answers(
    config: Common, language: Language, weights: Any, mesh: Any, prompts: Sequence[str]
) -> list[str]:
    """The greedy continuation of each prompt, up to config.generate tokens or the end."""
    tokenizer = language.tokenizer()
    stop = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    written = generation.generate(
        language.config,
        weights,
        [tokenizer.encode(prompt) for prompt in prompts],
        max_new=config.generate,
        stop=stop,
        batch_size=config.score_batch,
        mesh=mesh,
        length=config.data.length,
    )
    return [_text(tokenizer, tokens) for tokens in written]


def _text(tokenizer: Any, tokens: np.ndarray) -> str:
    # A vocabulary that was rounded up has ids that spell nothing.
    return tokenizer.decode(tokens[tokens < tokenizer.vocab_size].tolist()).strip()


def programs(config: Common, language: Language, weights: Any, mesh: Any) -> dict[str, Program]:
    """What `answers` runs, for a plan; weights: shapes that carry shardings."""
    if not config.generate:
        return {}
    program = generation.program(
        language.config,
        weights,
        max_new=config.generate,
        batch_size=config.score_batch,
        length=config.data.length,
        mesh=mesh,
    )
    return {"writing": program}


def recalls(
    config: Common,
    language: Language,
    weights: Any,
    mesh: Any,
    name: str,
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """ROUGE-L recall of the written answers of a set, and the texts of its first questions."""
    prompts = [templates.question_answer(r["question"], r["answer"])[0] for r in records]
    texts = answers(config, language, weights, mesh, prompts)
    found = [rouge.rouge_l_recall(t, r["answer"]) for t, r in zip(texts, records, strict=True)]
    shown = [
        {"question": r["question"], "answer": r["answer"], "written": text}
        for r, text in zip(records[:4], texts, strict=False)
    ]
    return {
        f"{name}_rouge": float(np.mean(found)),
        f"{name}_rouge_rows": np.asarray(found),
        f"{name}_texts": shown,
    }
