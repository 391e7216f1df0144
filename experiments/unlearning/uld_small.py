"""Unlearning from logit difference: a small assistant remembers, and is subtracted.

Paper: Ji et al. 2024 (arXiv 2406.08607). A language model learns questions and answers about
authors. An assistant, its own first layers, is then trained to remember the answers to forget and
to be uniform on the others, and next tokens are predicted from the difference of their logits: the
model itself is never trained again. Beside it are GradDiff and NPO+RT, which train all of it, and
a model retrained without the authors to forget.

The assistant's data are augmented as in the paper, by the same answers to questions asked in other
words (to remember) and by wrong answers to the questions (to be uniform on); an ablation leaves out
either. The truth ratio is measured with other paraphrases and other wrong answers than those.

Claim: it forgets, keeps more of the rest than GradDiff and NPO+RT, and needs its augmentation. At
`laptop` it forgets and keeps more than GradDiff, but not more than NPO+RT, and does better without
its augmentation.

    python -m experiments.unlearning.uld_small smoke     # generated authors: 20 s
    python -m experiments.unlearning.uld_small laptop    # real TOFU, a small LM, 3 seeds
    python -m experiments.unlearning.uld_small laptop --model smollm2 --adapter.rank 16

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from experiments.unlearning.common import lm, qa, runs
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS, Setting
from experiments.unlearning.parts import uld_report
from experiments.unlearning.parts.logit_difference import WHOLE, Difference, augmented
from experiments.unlearning.parts.uld_report import BASELINES, VARIANTS, Variant
from kd_jax import trees
from kd_jax.data import shapes, sources
from kd_jax.launch import run
from kd_jax.launch.config import check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.models import decoder
from kd_jax.models.truncated import truncated, truncated_config
from kd_jax.objectives.unlearn.assistant import assistant_training
from kd_jax.types import Objective

CLAIMS = uld_report.CLAIMS
Found = Mapping[str, Any]


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
        most = qa.PERTURBED - 1
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
        # Scanned: one layer is compiled, and the assistant's is a slice of it.
        decoder=dataclasses.replace(lm.TINY, width=32, depth=2, mlp=64, head_dim=8, scan=True),
        data=qa.Data(forget_authors=1, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=2, batch_size=16),
        assistant=Learning(rate=5e-3, epochs=2, batch_size=16),
        evaluations=1,
        evaluate_retain=20,
        wrong_answers=1,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(lm.TINY, width=96, depth=3, kv_heads=4, head_dim=24, mlp=192),
        data=qa.Data(tofu=True, forget_authors=2, retain_authors=5, length=72),
        finetune=Learning(rate=4e-3, epochs=45, batch_size=16),
        unlearn=Learning(rate=5e-4, epochs=20, batch_size=8, warmup=0.2),
        assistant=Learning(rate=3e-3, epochs=20, batch_size=8),
        wrong_answers=2,
        score_batch=40,
        seeds=3,
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
            runs.retrain(config, language, seed),
            runs.score(config, language, seed, "retrain"),
            runs.reference(config, language, seed),
        ]
        for name in BASELINES:
            found += [
                runs.forget(config, language, seed, name, METHODS[name]),
                runs.score(config, language, seed, name),
            ]
        both = _opened(config, language)
        found += [_start(config, both, seed)]
        for name, variant in VARIANTS.items():
            found += _remember(config, both, seed, name, variant)
    return tuple(found)


def _opened(config: Config, language: lm.Language) -> Difference:
    """The model, and the architecture of its assistant; the weights of that are `_start`'s."""
    depth = max(1, round(config.share * language.config.depth))
    small = truncated_config(language.config, depth)
    assistant = language._replace(config=small, model=decoder.decoder(small))
    return Difference(config, language, assistant, config.weight, config.top)


def _start(config: Config, both: Difference, seed: int) -> Stage:
    """The first layers of the fine-tuned model."""
    whole, depth = both.whole.config, both.assistant.config.depth

    def build(found: Found) -> Compute:
        weights = found[f"finetune_{seed}"].weights()

        def cut() -> tuple[Any, Mapping[str, Any]]:
            params = materialise(weights, make_mesh(config.mesh), decoder.rules(whole))
            return truncated(whole, params, depth), {}

        return Compute(cut, _shapes(both, weights.abstract))

    return Stage(f"first_layers_{seed}", build, (f"finetune_{seed}",), {"depth": depth})


def _shapes(both: Difference, abstract: Any) -> Any:
    """Those of the assistant's weights, from those of the model's."""
    depth = both.assistant.config.depth
    return jax.eval_shape(lambda params: truncated(both.whole.config, params, depth), abstract)


def _remember(
    config: Config, both: Difference, seed: int, name: str, variant: Variant
) -> tuple[Stage, Stage]:
    """The assistant's training, and the scores of the model without what it remembers."""
    learning, count = config.assistant, qa.sizes(config.data)[0]
    before, small = f"finetune_{seed}", both.assistant

    def training(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            return augmented(
                config,
                both.whole.tokenizer(),
                paraphrases=variant.paraphrases,
                wrong=variant.wrong,
                seed=seed,
                batch_size=learning.batch_size,
            )

        made = runs.training(
            config,
            small,
            seed,
            start=found[f"first_layers_{seed}"].weights(),
            objective=functools.partial(_objective, config.uniform),
            learning=learning,
            count=count,
            source=source,
            frozen={WHOLE: found[before].weights()},
            frozen_rules={WHOLE: decoder.rules(both.whole.config)},
        )
        policy = lm.tuning(config.adapter, small.config, small.weights, seed).policy
        rows = shapes.text(learning.batch_size, config.data.length)
        return made._replace(
            evaluations=(both.along_training(policy, learning.steps(count)),),
            batch={"forget": rows, "retain": rows},
        )

    def score(found: Found) -> Compute:
        return both.finished(found[before], found[f"{name}_{seed}"])

    combined = {"weight": config.weight, "top": config.top}
    depends = runs.unlearnt_from(config, seed) | {"assistant": learning, "variant": variant}
    depends |= {"uniform": config.uniform, "wrong": config.wrong_answers} | combined
    measured = {"keep": config.evaluate_retain, "wrong": config.wrong} | combined
    return (
        Stage(f"{name}_{seed}", training, (before, f"first_layers_{seed}"), depends),
        Stage(f"{name}_{seed}_score", score, (before, f"{name}_{seed}"), measured),
    )


def _objective(uniform: float, s: Setting) -> Objective:
    return assistant_training(s.model, weight=uniform, policy=s.policy)


def trained(config: Config) -> dict[str, int]:
    """How many parameters are trained: by the methods that train the model, and by ULD."""
    both = _opened(config, runs.language(config, config.seed))
    start = both.whole.weights
    first = start._replace(abstract=_shapes(both, start.abstract))
    parts = {"model": (both.whole, start), "assistant": (both.assistant, first)}
    return {
        name: trees.size(
            lm.tuning(config.adapter, opened.config, weights, config.seed).weights.abstract
        )
        for name, (opened, weights) in parts.items()
    }


def report(config: Config, artefacts: Found, folder: Any):
    return uld_report.results(artefacts, trained(config), config.repetitions, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
