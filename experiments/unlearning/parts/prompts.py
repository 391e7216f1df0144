"""Questions asked again after a context: nothing, irrelevant facts, facts that tell more and more.

All contexts have the same number of tokens: rows of "Question: ... Answer: ...", the most telling
one last, cut at the start. So they differ in what they say alone.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.unlearning.common import qa, scorers
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.lm import Language
from kd_jax.data import collate, templates
from kd_jax.evaluation import reintroduction, rouge
from kd_jax.launch import generation
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Program, Stage, materialise, shapes_on
from kd_jax.models import decoder
from kd_jax.objectives.combinators import own_weights

Record = Mapping[str, Any]

PLAIN, CONTROL = "plain", "irrelevant"
KINDS = {
    PLAIN: "nothing",
    CONTROL: "irrelevant",
    "related": "other facts",
    "described": "in other words",
    "verbatim": "word for word",
}


def rows_of(kind: str, number: int, questions: qa.Questions) -> list[tuple[str, str]]:
    """(question, answer) of the rows of a kind of context for a question to forget.

    irrelevant: of authors to keep. related: of the same author, those that share the most with the
    answer last, none that holds it word for word. described, verbatim: the same, and last the
    question itself, paraphrased with its answer or as it is.
    """
    record = questions.forget[number]
    if kind == CONTROL:
        start = 7 * number % len(questions.retain)  # another beginning for each question
        order = (*questions.retain[start:], *questions.retain[:start])
        return [(r["question"], r["answer"]) for r in order]
    same = [
        (r["question"], r["answer"])
        for r in questions.forget
        if r["author"] == record["author"]
        and r is not record
        and not reintroduction.gives_away(r["answer"], record["answer"])
    ]
    same.sort(key=lambda row: reintroduction.copyable(row[1], record["answer"]))
    if kind == "described":
        same.append((record["paraphrased_question"], record["paraphrased_answer"]))
    elif kind == "verbatim":
        same.append((record["question"], record["answer"]))
    return same


def context(tokenizer: Any, rows: Sequence[tuple[str, str]], length: int) -> list[int]:
    """The last `length` tokens of the rows. ValueError where they have fewer."""
    pieces: list[int] = []
    for question, answer in rows:
        for text in (*templates.question_answer(question, answer), "\n\n"):
            pieces += tokenizer.encode(text)
    if len(pieces) < length:
        raise ValueError(f"context: got {length}, takes at most {len(pieces)} tokens of these rows")
    return pieces[len(pieces) - length :]


def examples(
    tokenizer: Any, questions: qa.Questions, kind: str, length: int
) -> list[collate.Example]:
    """Each question to forget with its answer, after a context of a kind."""
    found = []
    for number, record in enumerate(questions.forget):
        prompt, answer = templates.question_answer(record["question"], record["answer"])
        one = templates.example(tokenizer, prompt, answer)
        before: list[int] = []
        if kind != PLAIN:
            before = context(tokenizer, rows_of(kind, number, questions), length)
        found.append(collate.Example([*before, *one.prompt], one.answer))
    return found


def stage(config: Common, language: Language, seed: int, name: str, tokens: int) -> Stage:
    """What the model of the stage f"{name}_{seed}" answers after contexts of so many tokens.

    Rows, per question to forget and kind: the answer's loss, the ROUGE-L recall of what is written,
    and that of the context itself, as much as copying can give.
    """
    model = f"{name}_{seed}"

    def build(found: Mapping[str, Artefact]) -> Compute:
        return Compute(
            functools.partial(_measure, config, language, found[model], tokens),
            plan=functools.partial(_planned, config, language, found[model], tokens),
        )

    depends = {"context": tokens, "generate": config.generate}
    return Stage(f"{model}_contexts", build, (model,), depends)


def _measure(
    config: Common, language: Language, artefact: Artefact, tokens: int
) -> tuple[None, Mapping[str, Any]]:
    questions, tokenizer = qa.load(config.data), language.tokenizer()
    mesh = make_mesh(config.mesh)
    weights = materialise(artefact.weights(), mesh, decoder.rules(language.config))
    score = scorers.make_scorer(
        language.model, own_weights, mesh=mesh, batch_size=config.score_batch
    )
    answers = [record["answer"] for record in questions.forget]
    asked = {kind: examples(tokenizer, questions, kind, tokens) for kind in KINDS}
    found: dict[str, Any] = {}
    shown: list[dict[str, str]] = [
        {"question": r["question"], "answer": r["answer"]} for r in questions.forget[:3]
    ]
    # Those with a context together, in one shape.
    for kinds, length in _shapes(config, tokens).items():
        rows = {
            kind: collate.collate_qa(
                asked[kind], length=length, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id or 0
            )
            for kind in kinds
        }
        scores = score({"model": weights, "aux": {}}, {}, rows)
        written = generation.generate(
            language.config,
            weights,
            [example.prompt for kind in kinds for example in asked[kind]],
            batch_size=config.score_batch,
            mesh=mesh,
            **_writing(config, tokenizer, length),
        )
        for i, kind in enumerate(kinds):
            part = written[i * len(answers) : (i + 1) * len(answers)]
            texts = [tokenizer.decode(ids.tolist()).strip() for ids in part]
            found[f"{kind}_loss"] = scorers.loss(scores[kind])
            found[f"{kind}_rouge"] = _recalls(texts, answers)
            given = [_before(tokenizer, example, tokens, kind) for example in asked[kind]]
            found[f"{kind}_copyable"] = _recalls(given, answers)
            for row, text in zip(shown, texts, strict=False):
                row[kind] = text
    return None, found | {"texts": shown}


def _shapes(config: Common, tokens: int) -> dict[tuple[str, ...], int]:
    """{kinds: the length of their rows}."""
    others = tuple(kind for kind in KINDS if kind != PLAIN)
    return {(PLAIN,): config.data.length, others: config.data.length + tokens}


def _writing(config: Common, tokenizer: Any, length: int) -> dict[str, Any]:
    stop = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return {"max_new": config.generate, "stop": stop, "length": length}


def _recalls(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    pairs = zip(texts, answers, strict=True)
    return np.array([rouge.rouge_l_recall(text, answer) for text, answer in pairs])


def _before(tokenizer: Any, example: collate.Example, tokens: int, kind: str) -> str:
    return "" if kind == PLAIN else tokenizer.decode(example.prompt[:tokens])


def _planned(
    config: Common, language: Language, artefact: Artefact, tokens: int, mesh: Any
) -> dict[str, Program]:
    weights = shapes_on(artefact.weights(), mesh, decoder.rules(language.config))
    found = {}
    for kinds, length in _shapes(config, tokens).items():
        suffix = "" if kinds == (PLAIN,) else "_in_context"
        programs = scorers.scorer_programs(
            language.model,
            own_weights,
            {"model": weights, "aux": {}},
            {},
            batch_size=config.score_batch,
            length=length,
        )
        found |= {f"{name}{suffix}": program for name, program in programs.items()}
        # Without the token that stops: a plan does not read the tokeniser.
        found[f"writing{suffix}"] = generation.program(
            language.config,
            weights,
            batch_size=config.score_batch,
            length=length,
            max_new=config.generate,
            mesh=mesh,
        )
    return found
