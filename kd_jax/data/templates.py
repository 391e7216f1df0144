"""Text of questions and answers, and its tokenisation into examples.

A template gives (prompt text, answer text). The two are tokenised separately, so that the boundary
between masked and labelled tokens is exact; jointly, byte-level BPE may merge across it. The space
before an answer belongs to the answer, as such tokenisers glue a space to the word that follows:
the ids are then those of the joint text in all usual cases.
"""

from typing import Any, Protocol

from kd_jax.data import collate, pairs


class Tokenizer(Protocol):
    """What is asked of a tokeniser; it adds no special tokens of its own to `encode`."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Any) -> str: ...


def question_answer(question: str, answer: str) -> tuple[str, str]:
    """("Question: {question}\\nAnswer:", " {answer}"): TOFU's form for models without a chat."""
    return f"Question: {question}\nAnswer:", f" {answer}"


def chat(
    tokenizer: Any, question: str, answer: str, *, system: str | None = None
) -> tuple[str, str]:
    """(the model's own chat up to where the assistant speaks, the answer).

    tokenizer.apply_chat(messages, add_generation_prompt=True) -> str. The answer is closed by the
    end-of-sequence token that collation appends: the model's end-of-turn token.
    """
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat(messages, add_generation_prompt=True), answer


def example(
    tokenizer: Tokenizer, prompt: str, answer: str, *, bos_id: int | None = None
) -> collate.Example:
    """The example of a prompt and an answer text; bos_id goes first where the model wants one."""
    return collate.Example(_prompt(tokenizer, prompt, bos_id), tokenizer.encode(answer))


def pair(
    tokenizer: Tokenizer, prompt: str, chosen: str, rejected: str, *, bos_id: int | None = None
) -> pairs.Pair:
    """As `example`, with a preferred and a rejected answer."""
    return pairs.Pair(
        _prompt(tokenizer, prompt, bos_id), tokenizer.encode(chosen), tokenizer.encode(rejected)
    )


def _prompt(tokenizer: Tokenizer, prompt: str, bos_id: int | None) -> list[int]:
    return [*([] if bos_id is None else [bos_id]), *tokenizer.encode(prompt)]
