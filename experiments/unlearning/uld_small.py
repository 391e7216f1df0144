"""Unlearning from logit difference: a small assistant remembers, and is subtracted.

Paper: Ji et al. 2024 (arXiv 2406.08607). A language model learns questions and answers about
authors. An assistant, its own first layers, is then trained to remember the answers to forget and
to be uniform on the others, and next tokens are predicted from the difference of their logits: the
model itself is never trained again. Beside it are GradDiff and NPO+RT, which train all of it, and
a model retrained without the authors to forget.

The assistant's data are augmented as in the paper, by the same answers to questions asked in other
words (to remember) and by wrong answers to the questions (to be uniform on); an ablation leaves out
either. The truth ratio is measured with other paraphrases and other wrong answers than those.

Claim: it forgets, keeps more of the rest than GradDiff and NPO+RT, and needs its augmentation.

    python -m experiments.unlearning.uld_small smoke     # generated authors: 20 s
    python -m experiments.unlearning.uld_small laptop    # real TOFU, a small LM, 3 seeds
    python -m experiments.unlearning.uld_small laptop --model smollm2 --adapter.rank 16

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.unlearning import _language, _questions, _runs, _scores, _uld_report
from experiments.unlearning._config import Common
from experiments.unlearning._learning import Learning
from experiments.unlearning._methods import METHODS, Setting
from experiments.unlearning._uld_report import VARIANTS, Variant
from kd_jax import trees
from kd_jax.data import arrays, pairs, shapes, sources
from kd_jax.evaluation import tofu
from kd_jax.launch import run
from kd_jax.launch.config import check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import (
    Compute,
    Evaluation,
    Program,
    Stage,
    Training,
    materialise,
    mesh_of,
    shapes_on,
)
from kd_jax.models import decoder
from kd_jax.models.truncated import truncated, truncated_config
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.unlearn.assistant import assistant_training, logit_difference_scores
from kd_jax.types import Model, Objective, Policy

CLAIMS = _uld_report.CLAIMS
Found = Mapping[str, Any]
BASELINES = ("graddiff", "npo_rt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    assistant: Learning
    """Training the assistant; an epoch is a pass over the questions to forget."""
    share: float = 1 / 3
    """The assistant is this part of the model's layers, the first ones."""
    uniform: float = 5.0
    """Weight of being uniform on the answers to keep."""
    weight: float = -0.8
    """The assistant's logits are added with this weight."""
    top: float = 0.01
    """Tokens that are rarer than the likeliest by more than this factor, and not among so large a
    part of the vocabulary, are left to the model alone."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "uniform")
        for name in ("share", "top"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes a number in (0, 1]")
        if self.weight >= 0:
            raise ValueError(f"weight: got {self.weight}, takes a number below 0")
        if self.data.forget:
            raise ValueError(
                "data.forget: takes none here; the assistant's data are augmented by paraphrases "
                "and wrong answers, which authors come with"
            )
        most = _questions.PERTURBED - 1
        if not 1 <= self.wrong_answers <= most:
            raise ValueError(
                f"wrong_answers: got {self.wrong_answers}, takes 1 to {most}: the assistant is "
                "trained on the others"
            )
        for name in ("generate", "general"):
            if getattr(self, name):
                raise ValueError(f"{name}: got {getattr(self, name)}, takes 0 here")


PRESETS = {
    "smoke": Config(
        decoder=dataclasses.replace(_language.TINY, width=32, depth=2, mlp=64, head_dim=8),
        data=_questions.Data(forget_authors=1, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=2, batch_size=16),
        assistant=Learning(rate=5e-3, epochs=2, batch_size=16),
        evaluations=1,
        evaluate_retain=20,
        wrong_answers=1,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(
            _language.TINY, width=128, depth=3, heads=4, kv_heads=4, head_dim=32, mlp=256
        ),
        data=_questions.Data(tofu=True, forget_authors=2, retain_authors=8, length=96),
        finetune=Learning(rate=3e-3, epochs=20, batch_size=16),
        unlearn=Learning(rate=5e-4, epochs=10, batch_size=8, warmup=0.2),
        assistant=Learning(rate=1e-3, epochs=10, batch_size=8),
        wrong_answers=2,
        score_batch=40,
        seeds=3,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        language = _runs.language(config, seed)
        found += [
            _runs.finetune(config, language, seed),
            _runs.score(config, language, seed, "finetune"),
            _runs.retrain(config, language, seed),
            _runs.score(config, language, seed, "retrain"),
            _runs.reference(config, language, seed),
        ]
        for name in BASELINES:
            found += [
                _runs.forget(config, language, seed, name, METHODS[name]),
                _runs.score(config, language, seed, name),
            ]
        small = _first_layers(config, language)
        found += [_start(config, language, small, seed)]
        for name, variant in VARIANTS.items():
            found += _remember(config, language, small, seed, name, variant)
    return tuple(found)


def _first_layers(config: Config, language: _language.Language) -> _language.Language:
    """The assistant's architecture; its weights are those of `_start`."""
    depth = max(1, round(config.share * language.config.depth))
    small = truncated_config(language.config, depth)
    return language._replace(config=small, model=decoder.decoder(small))


def _start(
    config: Config, language: _language.Language, small: _language.Language, seed: int
) -> Stage:
    """The first layers of the fine-tuned model."""
    depth, rules = small.config.depth, decoder.rules(language.config)

    def build(found: Found) -> Compute:
        weights = found[f"finetune_{seed}"].weights()

        def cut() -> tuple[Any, Mapping[str, Any]]:
            whole = materialise(weights, make_mesh(config.mesh), rules)
            return truncated(language.config, whole, depth), {}

        return Compute(cut, truncated_shapes(language.config, weights.abstract, depth))

    return Stage(f"first_layers_{seed}", build, (f"finetune_{seed}",), {"depth": depth})


def _remember(
    config: Config,
    language: _language.Language,
    small: _language.Language,
    seed: int,
    name: str,
    variant: Variant,
) -> tuple[Stage, Stage]:
    """The assistant's training, and the scores of the model without what it remembers."""
    learning, count = config.assistant, _questions.sizes(config.data)[0]
    before, whole_rules = f"finetune_{seed}", decoder.rules(language.config)
    depends = _runs.unlearnt_from(config, seed) | {"assistant": learning, "variant": variant}
    depends |= {"uniform": config.uniform, "wrong": config.wrong_answers}
    combined = {"weight": config.weight, "top": config.top}

    def training(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            return _augmented(config, language, seed, variant)

        made = _runs.training(
            config,
            small,
            seed,
            start=found[f"first_layers_{seed}"].weights(),
            objective=functools.partial(_objective, config.uniform),
            learning=learning,
            count=count,
            source=source,
            frozen={"whole": found[before].weights()},
            frozen_rules={"whole": whole_rules},
        )
        policy = _language.tuning(config.adapter, small.config, small.weights, seed).policy
        along = _along(config, language, small, policy, learning.steps(count))
        batch = shapes.text(learning.batch_size, config.data.length)
        return made._replace(evaluations=(along,), batch={"forget": batch, "retain": batch})

    def score(found: Found) -> Compute:
        trees_of = {"whole": (found[before], language), "small": (found[f"{name}_{seed}"], small)}

        def placed(make: Any, mesh: Any) -> tuple[Any, Any]:
            whole, part = (
                make(artefact.weights(), mesh, decoder.rules(opened.config))
                for artefact, opened in trees_of.values()
            )
            return {"model": part, "aux": {}}, {"whole": whole}

        def measure() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            params, frozen = placed(materialise, mesh)
            return None, _figures(config, language, small, params, frozen, mesh)

        def plan(mesh: Any) -> Mapping[str, Program]:
            params, frozen = placed(shapes_on, mesh)
            return _programs(config, language, small, own_weights, params, frozen)

        return Compute(measure, plan=plan)

    needs = (before, f"first_layers_{seed}")
    measured = {"keep": config.evaluate_retain, "wrong": config.wrong}
    return (
        Stage(f"{name}_{seed}", training, needs, depends | combined),
        Stage(f"{name}_{seed}_score", score, (before, f"{name}_{seed}"), measured | combined),
    )


def truncated_shapes(config: Any, abstract: Any, depth: int) -> Any:
    """What `truncated` makes of such a tree."""
    import jax

    return jax.eval_shape(lambda params: truncated(config, params, depth), abstract)


def _objective(uniform: float, s: Setting) -> Objective:
    return assistant_training(s.model, weight=uniform, policy=s.policy)


def _augmented(
    config: Config, language: _language.Language, seed: int, variant: Variant
) -> sources.Source:
    """Batches of what the assistant remembers ("forget") and of what it is uniform on ("retain").

    An epoch has as many rows with paraphrases as without: other rows, not more steps.
    """
    questions, tokenizer = _questions.load(config.data), language.tokenizer()
    length = config.data.length
    forget = [_questions.answer_rows(tokenizer, questions.forget, length)]
    retain = [_questions.answer_rows(tokenizer, questions.retain, length)]
    if variant.paraphrases:
        asked = [{**r, "question": r["paraphrased_question"]} for r in questions.forget]
        forget.append(_questions.answer_rows(tokenizer, asked, length))
    if variant.wrong:
        # Those before are the truth ratio's.
        for i in range(config.wrong_answers, config.data.perturbed):
            answers = [record["perturbed_answer"][i] for record in questions.forget]
            retain.append(_questions.rows(tokenizer, questions.forget, answers, length))
    return pairs.forget_retain(
        {"forget": _numbered(forget)},
        {"retain": _numbered(retain)},
        seed=seed,
        batch_size=config.assistant.batch_size,
    )


def _numbered(parts: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    rows = arrays.concatenate(parts)
    return rows | {"index": np.arange(arrays.size(rows), dtype=np.int32)}


@functools.cache  # one function, so that all stages share one compilation
def _scoring(whole: Model, weight: float, top: float) -> Any:
    return functools.partial(
        logit_difference_scores,
        whole,
        weight=weight,
        top=top,
        base_policy=frozen_weights("whole"),
    )


def _scorer(
    config: Config,
    language: _language.Language,
    small: _language.Language,
    policy: Policy,
    mesh: Any,
) -> _scores.Scorer:
    return _scores.make_scorer(
        small.model,
        policy,
        mesh=mesh,
        batch_size=config.score_batch,
        scoring=_scoring(language.model, config.weight, config.top),
    )


def _programs(
    config: Config,
    language: _language.Language,
    small: _language.Language,
    policy: Policy,
    params: Any,
    frozen: Any,
) -> Mapping[str, Program]:
    return _scores.scorer_programs(
        small.model,
        policy,
        params,
        frozen,
        batch_size=config.score_batch,
        length=config.data.length,
        scoring=_scoring(language.model, config.weight, config.top),
    )


def _along(
    config: Config,
    language: _language.Language,
    small: _language.Language,
    policy: Policy,
    steps: int,
) -> Evaluation:
    """Probabilities under the difference, along the assistant's training."""

    @functools.cache
    def sets() -> dict[str, Any]:
        questions = _questions.load(config.data)
        limits = {"length": config.data.length, "keep": config.evaluate_retain}
        return _scores.answer_sets(language.tokenizer(), questions, **limits)

    def measure(params, carry, frozen) -> dict[str, Any]:
        score = _scorer(config, language, small, policy, mesh_of(params))
        return _scores.probabilities(score(params, frozen, sets()))

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        return _programs(config, language, small, policy, params, frozen)

    return Evaluation("answers", max(1, steps // config.evaluations), measure, plan)


def _figures(
    config: Config,
    language: _language.Language,
    small: _language.Language,
    params: Any,
    frozen: Any,
    mesh: Any,
) -> dict[str, Any]:
    """Those of `_measuring.figures` that need no text, under the difference."""
    questions, tokenizer = _questions.load(config.data), language.tokenizer()
    length, wrong = config.data.length, config.wrong
    sets = _scores.answer_sets(tokenizer, questions, length=length, keep=config.evaluate_retain)
    asked = {"forget": questions.forget, "retain": questions.retain[: config.evaluate_retain]}
    for name, records in asked.items():
        sets |= _scores.truth_sets(tokenizer, name, records, length=length, wrong=wrong)
    scores = _scorer(config, language, small, own_weights, mesh)(params, frozen, sets)
    found = _scores.probabilities(scores)
    for name in asked:
        found |= _scores.truth_ratios(scores, name, wrong)
    kept = [found["retain_probability"], found["retain_truth"]]
    return found | {"retain_utility": tofu.harmonic_mean(kept)}


def trained(config: Config) -> dict[str, int]:
    """How many parameters are trained: by the methods that train the model, and by ULD."""
    language = _runs.language(config, config.seed)
    small, start = _first_layers(config, language), language.weights
    shapes_of = truncated_shapes(language.config, start.abstract, small.config.depth)
    counts = {}
    for name, opened, weights in (
        ("model", language, start),
        ("assistant", small, start._replace(abstract=shapes_of)),
    ):
        tune = _language.tuning(config.adapter, opened.config, weights, config.seed)
        counts[name] = trees.size(tune.weights.abstract)
    return counts


def report(config: Config, artefacts: Found, folder: Any):
    return _uld_report.results(artefacts, BASELINES, trained(config), config.repetitions, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
