"""The stages that unlearning experiments are made of: learn, forget, learn without, score.

    language = runs.language(config, seed)
    stages = (
        runs.finetune(config, language, seed),
        runs.reference(config, language, seed),
        runs.forget(config, language, seed, "npo_rt", METHODS["npo_rt"]),
        runs.score(config, language, seed, "npo_rt"),
    )

A stage's name ends with the repetition's seed: "finetune_0", "npo_rt_0"; "npo_rt_0_score" needs
"npo_rt_0". `standard` is the whole of it for several methods.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.unlearning.common import lm, measuring, qa
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import REFERENCE, Make, Method, Setting
from kd_jax.data import pairs, shapes, sources
from kd_jax.launch import precompute
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import digest
from kd_jax.launch.stages import Stage, Training
from kd_jax.launch.weights import Weights, joined
from kd_jax.models import decoder
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import GradientRule, Objective

Records = Sequence[Mapping[str, Any]]


def language(config: Common, seed: int) -> lm.Language:
    return lm.open_language(config.model, config.decoder, config.data, seed)


def standard(config: Common, methods: Mapping[str, Method]) -> tuple[Stage, ...]:
    """For each repetition: fine-tuned, forgotten by each method, retrained; all of them scored."""
    found: list[Stage] = []
    for seed in config.repetitions:
        opened = language(config, seed)
        found += [
            finetune(config, opened, seed),
            score(config, opened, seed, "finetune"),
            reference(config, opened, seed),
        ]
        for name, method in methods.items():
            found += [
                forget(config, opened, seed, name, method),
                score(config, opened, seed, name),
            ]
        found += [retrain(config, opened, seed), score(config, opened, seed, "retrain")]
    return tuple(found)


def finetune(config: Common, language: lm.Language, seed: int) -> Stage:
    """Trained on all answers."""
    return learn(config, language, seed, "finetune", _answers, sum(qa.sizes(config.data)))


def retrain(config: Common, language: lm.Language, seed: int) -> Stage:
    """Trained on the answers to keep alone: what unlearning is measured against."""
    return learn(config, language, seed, "retrain", _kept, qa.sizes(config.data)[1])


def _answers(questions: qa.Questions) -> Records:
    return [*questions.forget, *questions.retain]


def _kept(questions: qa.Questions) -> Records:
    return questions.retain


def learn(
    config: Common,
    language: lm.Language,
    seed: int,
    name: str,
    records: Callable[[qa.Questions], Records],
    count: int,
) -> Stage:
    """A stage f"{name}_{seed}" that trains the initial model on the answers of `count` records."""

    def build(found: Any) -> Training:
        @functools.cache
        def source() -> sources.Source:
            chosen = records(qa.load(config.data))
            return answer_source(config, language, chosen, seed, config.finetune.batch_size)

        return training(
            config,
            language,
            seed,
            start=language.weights,
            objective=answers_nll,
            learning=config.finetune,
            count=count,
            source=source,
        )

    return Stage(f"{name}_{seed}", build, (), _learnt_from(config, seed))


def answers_nll(setting: Setting) -> Objective:
    """Next-token training on the answers of a text batch, for `training`."""
    return supervise(setting.model, {"nll": next_token_nll}, policy=setting.policy)


def reference(config: Common, language: lm.Language, seed: int) -> Stage:
    """The log-probabilities of the answers to forget, and of refusals, before unlearning."""
    return measuring.reference(config, language, seed, f"reference_{seed}", f"finetune_{seed}")


def forget(
    config: Common,
    language: lm.Language,
    seed: int,
    name: str,
    method: Method,
    **changes: Any,
) -> Stage:
    """A stage f"{name}_{seed}" that unlearns by a method, from the fine-tuned model.

    changes: what `training` takes beside (gradient=...), for variants of a method; the name tells
    them apart.
    """

    def build(found: Any) -> Training:
        @functools.cache
        def source() -> sources.Source:
            questions = qa.load(config.data)
            stored, start = found[f"reference_{seed}"], found[f"finetune_{seed}"]
            return forget_source(config, language, seed, method.parts, questions, stored, start)

        return training(
            config,
            language,
            seed,
            start=found[f"finetune_{seed}"].weights(),
            objective=method.objective,
            learning=config.unlearn,
            count=qa.sizes(config.data)[0],
            source=source,
            parts=method.parts,
            reads_reference=method.reference,
            **changes,
        )

    needs = (f"finetune_{seed}", f"reference_{seed}")
    depends = unlearnt_from(config, seed) | {"method": name}
    return Stage(f"{name}_{seed}", build, needs, depends)


def score(config: Common, language: lm.Language, seed: int, name: str) -> Stage:
    """The full measurement of the model that the stage f"{name}_{seed}" made."""
    model = f"{name}_{seed}"
    depends = {"wrong": config.wrong, "keep": config.evaluate_retain}
    depends |= {"generate": config.generate, "general": config.general}
    return Stage(
        f"{model}_score",
        lambda found: measuring.finished(config, language, found[model]),
        (model,),
        depends,
    )


def training(
    config: Common,
    language: lm.Language,
    seed: int,
    *,
    start: Weights,
    objective: Make,
    learning: Learning,
    count: int,
    source: Callable[[], sources.Source],
    parts: Sequence[str] = (),
    reads_reference: bool = False,
    gradient: GradientRule | None = None,
    frozen: Mapping[str, Weights] | None = None,
    frozen_rules: Mapping[str, Any] | None = None,
    prepare: Any = None,
    prepare_every: int = 1,
) -> Training:
    """A training of this experiment's model from `start`, measured along the way.

    learning, count: how, and on how many rows in an epoch. source():
    the batches, made when the stage runs. parts: of each batch, () for one text batch.
    reads_reference: the objective reads a frozen copy of start. gradient, frozen (with
    frozen_rules), prepare: as of `make_train_step` and `Training`.
    """
    tune = lm.tuning(config.adapter, language.config, start, seed)
    rules = decoder.rules(language.config)
    held = dict(frozen or {})
    held_rules = dict(tune.frozen_rules) | dict(frozen_rules or {})
    reference = frozen_weights("base")  # adapters lie on it
    if tune.frozen is not None:
        held["base"] = start
    elif reads_reference:
        held["reference"], held_rules["reference"] = start, rules
        reference = frozen_weights("reference")
    steps, depth = learning.steps(count), language.config.depth
    setting = Setting(language.model, tune.policy, reference, config.beta, depth, steps)
    return Training(
        step=make_train_step(
            objective(setting),
            learning.optimizer(count),
            gradient=gradient,
            microbatches=config.microbatches,
        ),
        weights=tune.weights,
        frozen=joined(**held) if held else None,
        batches=lambda step, rows: source()(step, rows),
        batch=batch_shapes(parts, learning.batch_size, config.data.length),
        batch_size=learning.batch_size,
        steps=steps,
        rules=tune.rules,
        frozen_rules=held_rules,
        seed=seed,
        evaluations=(measuring.along_training(config, language, tune.policy, steps),),
        prepare=prepare,
        prepare_every=prepare_every,
        result=tune.result,
    )


def batch_shapes(parts: Sequence[str], rows: int, length: int) -> Any:
    """A text batch; or its parts, those of `measuring.REFERRED` with reference log-probs."""
    if not parts:
        return shapes.text(rows, length)
    return {
        part: shapes.text(rows, length, (REFERENCE,) if part in measuring.REFERRED else ())
        for part in parts
    }


def answer_source(
    config: Common, language: lm.Language, records: Records, seed: int, batch_size: int
) -> sources.Source:
    """Batches of the answers of some records."""
    rows = qa.answer_rows(language.tokenizer(), records, config.data.length)
    return sources.array_batches(rows, seed=seed, name="finetune", batch_size=batch_size)


def forget_source(
    config: Common,
    language: lm.Language,
    seed: int,
    parts: Sequence[str],
    questions: qa.Questions,
    stored: Artefact,
    start: Artefact,
) -> sources.Source:
    """Batches of the parts that a method asks for, of these questions.

    stored: the log-probabilities of `measuring.reference`, which are to be those of `start`.
    """
    tokenizer, length = language.tokenizer(), config.data.length
    forget = measuring.referred_rows(config, language, seed, questions.forget)
    columns = precompute.rows_of(
        stored, data=precompute.data_hash(forget), model=precompute.model_hash(start)
    )
    for part, rows in forget.items():
        rows[REFERENCE] = columns[part]
    retain = {"retain": qa.answer_rows(tokenizer, questions.retain, length)}
    if "retain_refusal" in parts:
        retain["retain_refusal"] = qa.refusal_rows(tokenizer, questions.retain, length, seed + 1)
    return pairs.forget_retain(
        {part: rows for part, rows in forget.items() if part in parts},
        {part: rows for part, rows in retain.items() if part in parts},
        seed=seed,
        batch_size=config.unlearn.batch_size,
    )


def unlearnt_from(config: Common, seed: int) -> dict[str, Any]:
    """What an unlearned model depends on, besides the method."""
    return _learnt_from(config, seed) | {"unlearn": config.unlearn, "beta": config.beta}


def _learnt_from(config: Common, seed: int) -> dict[str, Any]:
    data = dataclasses.replace(config.data, folder=None)  # where the files lie changes nothing
    found = {"model": config.model, "data": data, "adapter": config.adapter}
    found |= {"learning": config.finetune, "decoder": config.decoder, "seed": seed}
    found |= {"evaluations": config.evaluations, "keep": config.evaluate_retain}
    if data.forget:  # a path does not say what is in the file
        found["records"] = digest(qa.load(config.data), 16)
    return found
