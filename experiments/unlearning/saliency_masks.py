"""Which weights may move: unlearning with masks from gradients, magnitudes and chance.

Papers: Jia et al. 2024 (WAGLE, arXiv 2410.17509) and Fan et al. 2024 (SalUn, arXiv 2310.12508). A
model that knows some authors forgets one of them by gradient difference (GradDiff) while only a
share of its weights may move: those with the largest gradients on what is to be forgotten
(saliency), with the largest score that weighs forgetting against keeping (WAGLE), the largest
weights, or any. SalUn proper is random labels (here: a random one of the answers to choose from)
on the half of the weights with the largest gradients.

Claim: where equally much is forgotten, WAGLE's weights keep more than others of the same number.

    python -m experiments.unlearning.saliency_masks smoke    # generated authors: 20 s
    python -m experiments.unlearning.saliency_masks laptop   # real TOFU, a small LM, 5 seeds

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder). Masks are over all
weights of the model, norms and embeddings included, so adapters are refused.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.unlearning.common import lm, qa, runs
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS, Method, Setting, kept
from experiments.unlearning.parts import masks, masks_report
from experiments.unlearning.parts.masks_report import Variant
from kd_jax.attribution.accumulate import gradient_sum
from kd_jax.data import arrays, order, pairs, shapes, sources
from kd_jax.gradients import masked
from kd_jax.launch import run
from kd_jax.launch.config import check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder
from kd_jax.objectives.combinators import add, on
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.random_labels import random_options
from kd_jax.types import Objective

Found = Mapping[str, Any]

CLAIMS = masks_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    scores: tuple[masks.Name, ...] = ("random", "magnitude", "saliency", "wagle")
    """What chooses the weights that may move."""
    ratios: tuple[float, ...] = (0.05, 0.2, 0.8)
    """Shares of all weights that may move, in whole percents."""
    gamma: float = 1e-6
    """WAGLE's constant for the curvature of the retain loss; the smaller, the more that counts."""
    labels: bool = True
    """Random labels and SalUn besides; they need wrong answers to choose from."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "gamma")
        if self.adapter.rank:
            raise ValueError(
                f"adapter.rank: got {self.adapter.rank}, takes 0: masks choose among all weights"
            )
        percents = [round(100 * ratio) for ratio in self.ratios]
        if not percents or len({*percents}) < len(percents) or not {*percents} <= {*range(1, 100)}:
            raise ValueError(f"ratios: got {self.ratios}, takes different shares, 0.01 to 0.99")

    @property
    def variants(self) -> dict[str, Variant]:
        """The trainings that are compared, by the names of their stages."""
        labels = self.labels and bool(self.data.perturbed)
        return masks_report.variants(self.scores, self.ratios, labels)


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=1, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=1e-3, epochs=4, batch_size=16),
        scores=("wagle",),
        ratios=(0.8,),
        labels=False,  # the smoke run spends its time compiling
        evaluations=2,
        evaluate_retain=20,
        wrong_answers=1,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(lm.TINY, width=96, depth=2, mlp=192),
        data=qa.Data(tofu=True, forget_authors=1, retain_authors=4, length=64),
        finetune=Learning(rate=5e-3, epochs=25, batch_size=10),
        unlearn=Learning(rate=1e-3, epochs=24, batch_size=10),
        evaluations=24,
        wrong_answers=2,
        score_batch=20,
        seeds=5,
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        language = runs.language(config, seed)
        found += [
            runs.finetune(config, language, seed),
            runs.score(config, language, seed, "finetune"),
            runs.reference(config, language, seed),
            *(_gradient(config, language, seed, part) for part in ("forget", "retain")),
        ]
        for name, variant in config.variants.items():
            found += _unlearning(config, language, seed, name, variant)
        found += [
            runs.retrain(config, language, seed),
            runs.score(config, language, seed, "retrain"),
        ]
    return tuple(found)


def _gradient(config: Config, language: lm.Language, seed: int, part: str) -> Stage:
    """The sum over one pass of the gradients of the batches' losses, before unlearning."""
    size, length = config.unlearn.batch_size, config.data.length
    counts = qa.sizes(config.data)
    steps = -(-counts[("forget", "retain").index(part)] // size)

    def build(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            records = getattr(qa.load(config.data), part)
            rows = qa.answer_rows(language.tokenizer(), records, length)
            rows = arrays.pad_rows(rows, steps * size)
            return sources.array_batches(
                rows, seed=seed, name=part, batch_size=size, draw=order.sequential
            )

        objective = supervise(language.model, {"nll": next_token_nll})
        return Training(
            step=gradient_sum(objective, microbatches=config.microbatches),
            weights=found[f"finetune_{seed}"].weights(),
            batches=lambda step, rows: source()(step, rows),
            batch=shapes.text(size, length),
            batch_size=size,
            steps=steps,
            rules=decoder.rules(language.config),
            seed=seed,
            result=lambda state, frozen: state.carry["gradient"],
        )

    return Stage(f"{part}_gradient_{seed}", build, (f"finetune_{seed}",), {"batch_size": size})


def _unlearning(
    config: Config, language: lm.Language, seed: int, name: str, variant: Variant
) -> tuple[Stage, Stage]:
    """The unlearned model, and its score with the number of weights that have moved."""
    method = METHODS["graddiff"]
    if variant.labels:
        objective = functools.partial(_random_labels, seed)
        method = Method("random labels", "labels", objective)
    plain = runs.forget(config, language, seed, name, method)
    scored = runs.score(config, language, seed, name)
    rules = decoder.rules(language.config)
    before = (f"finetune_{seed}", f"forget_gradient_{seed}", f"retain_gradient_{seed}")

    def mask(found: Found, score: masks.Name) -> Weights:
        parts = (found[stage].weights() for stage in before)
        return masks.mask(score, *parts, ratio=variant.ratio, gamma=config.gamma, seed=seed)

    def forgetting(found: Found) -> Any:
        if variant.score is None:
            return plain.build(found)
        return runs.forget(
            config,
            language,
            seed,
            name,
            method,
            gradient=masked("mask"),
            frozen={"mask": mask(found, variant.score)},
            frozen_rules={"mask": rules},
        ).build(found)

    def build(found: Found) -> Training:
        training = forgetting(found)
        return _with_options(config, language, seed, training) if variant.labels else training

    if variant.score is None:
        return plain._replace(build=build), scored
    chosen = variant.score

    def score(found: Found) -> Compute:
        compute: Any = scored.build(found)

        def measure() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            models = [found[stage].weights() for stage in (before[0], f"{name}_{seed}")]
            trees = [materialise(tree, mesh, rules) for tree in (*models, mask(found, chosen))]
            return None, {**compute.run()[1], **masks.moved(*trees)}

        return compute._replace(run=measure)

    depends = {"ratio": variant.ratio, "gamma": config.gamma if variant.score == "wagle" else None}
    return (
        plain._replace(
            build=build,
            needs=tuple(dict.fromkeys((*plain.needs, *before))),
            depends={**plain.depends, **depends},
        ),
        scored._replace(build=score, needs=(*scored.needs, *before)),
    )


def _random_labels(seed: int, s: Setting) -> Objective:
    """Training on a random one of the answers to choose from, and on the answers to keep."""
    drawn = random_options(supervise(s.model, {"nll": next_token_nll}, policy=s.policy), seed=seed)
    return add({"forget": on("forget", drawn), "retain": kept(s)})


def _with_options(config: Config, language: lm.Language, seed: int, training: Training) -> Training:
    """The training on questions to forget that come with all their answers, [B, O, T]."""
    size, length, count = training.batch_size, config.data.length, 1 + config.data.perturbed

    @functools.cache
    def source() -> sources.Source:
        questions, tokenizer = qa.load(config.data), language.tokenizer()
        answers = [[r["answer"], *r["perturbed_answer"][: count - 1]] for r in questions.forget]
        each = [
            qa.rows(tokenizer, questions.forget, [a[i] for a in answers], length)
            for i in range(count)
        ]
        forget = {
            name: np.stack([rows[name] for rows in each], 1) if x.ndim > 1 else x
            for name, x in each[0].items()
        }
        retain = qa.answer_rows(tokenizer, questions.retain, length)
        return pairs.forget_retain(
            {"forget": forget}, {"retain": retain}, seed=seed, batch_size=size
        )

    def widened(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        rows, *rest = x.shape
        return jax.ShapeDtypeStruct((rows, count, *rest), x.dtype) if rest else x

    retain = shapes.text(size, length)
    return training._replace(
        batches=lambda step, rows: source()(step, rows),
        batch={"forget": jax.tree.map(widened, retain), "retain": retain},
    )


def report(config: Config, artefacts: Found, folder: Any):
    return masks_report.results(config.variants, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
