"""Latent adversarial training: unlearning that stands up to relearning and to latent attacks.

Paper: Sheshadri et al. 2024 (arXiv 2407.15549). A language model learns questions and answers about
authors. It is then trained to refuse the questions about some of them, away from their answers, and
to keep the others: once plainly, and once while an adversary perturbs its activations at the
prompt's tokens so that it answers all the same. Both then meet two attacks: relearning on every
second of the forgotten questions, measured on those between; and a fresh adversary. A model
retrained without the authors is attacked too: what it yields was never unlearned.

Claim: trained under attack, the forgotten answers come back less, at little cost to the others. At
`laptop` this holds for the latent attack; relearning brings nearly everything back from both.

    python -m experiments.unlearning.latent_adversarial smoke     # generated authors: 20 s
    python -m experiments.unlearning.latent_adversarial laptop    # real TOFU, a small LM, 3 seeds
    python -m experiments.unlearning.latent_adversarial laptop --model smollm2 --adapter.rank 16 \
        --layer 12

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.unlearning.common import lm, qa, runs, scorers
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import Setting
from experiments.unlearning.parts import latent_report
from kd_jax.data import pairs, shapes, sources
from kd_jax.evaluation import tofu
from kd_jax.launch import run
from kd_jax.launch.config import check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Program, Stage, Training, materialise, shapes_on
from kd_jax.models import decoder
from kd_jax.objectives.combinators import own_weights
from kd_jax.objectives.unlearn.latent import attacked_scores, latent_adversarial, latent_attack
from kd_jax.types import Objective

CLAIMS = latent_report.CLAIMS
Found = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    relearn: Learning
    """The attack by relearning; an epoch is a pass over half of the questions to forget."""
    layer: int = 1
    """The adversary adds to the stream after this layer, from 0."""
    eps: float
    """Radius of the adversary's ball, of each token."""
    attack_rate: float = 5e-2
    """Learning rate of the adversary."""
    attack_steps: int = 16
    """Its steps on each batch."""
    hold: int = 4
    """Steps of the model on each batch."""
    sft: float = 1.0
    """Weight of the answers to keep, beside 1 for refusals and 1 for the answers to forget."""
    radii: tuple[float, ...] = (0.5, 1.0, 2.0)
    """The fresh adversary's radii, in parts of eps; the claim is about 1."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "eps", "attack_rate", "attack_steps", "hold", "sft")
        depth = self.decoder.depth
        if self.model is None and not 0 <= self.layer < depth:
            raise ValueError(f"layer: got {self.layer}, takes 0 to {depth - 1}")
        if min(self.radii, default=0) <= 0 or self.radii.count(1.0) != 1:
            raise ValueError(f"radii: got {self.radii}, takes numbers above 0, and 1 among them")

    @property
    def places(self) -> tuple[str, ...]:
        return (f"block_{self.layer}",)


PRESETS = {
    "smoke": Config(
        decoder=dataclasses.replace(lm.TINY, width=32, mlp=64, head_dim=8),
        data=qa.Data(forget_authors=1, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=4, batch_size=16),
        relearn=Learning(rate=1e-3, epochs=2, batch_size=8),
        layer=0,
        eps=1.0,
        attack_steps=2,
        hold=2,
        radii=(1.0,),
        evaluations=1,
        evaluate_retain=20,
        wrong_answers=1,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(lm.TINY, width=96, depth=3, kv_heads=4, head_dim=24, mlp=192),
        data=qa.Data(tofu=True, forget_authors=2, retain_authors=5, length=72),
        finetune=Learning(rate=4e-3, epochs=45, batch_size=16),
        unlearn=Learning(rate=5e-4, epochs=16, batch_size=8),
        relearn=Learning(rate=5e-4, epochs=8, batch_size=5),
        eps=4.0,
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
            _unlearn(config, language, seed, "plain", 0.0),
            _unlearn(config, language, seed, "latent", config.eps),
        ]
        for name in latent_report.LABELS:
            found += [
                runs.score(config, language, seed, name),
                _relearn(config, language, seed, name),
                _attack(config, language, seed, name),
            ]
    return tuple(found)


def _unlearn(config: Config, language: lm.Language, seed: int, name: str, eps: float):
    """Refusing, under an adversary of radius eps; 0 is the same training without one."""
    learning, count = config.unlearn, qa.sizes(config.data)[0]
    # An adversary in a ball of one point has nothing to look for.
    attack = {"eps": eps, "rate": config.attack_rate, "steps": config.attack_steps if eps else 1}

    def build(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            questions, tokenizer = qa.load(config.data), language.tokenizer()
            length = config.data.length
            return pairs.forget_retain(
                {
                    "forget": qa.answer_rows(tokenizer, questions.forget, length),
                    "refusal": qa.refusal_rows(tokenizer, questions.forget, length, seed),
                },
                {"retain": qa.answer_rows(tokenizer, questions.retain, length)},
                seed=seed,
                batch_size=learning.batch_size,
            )

        start = found[f"finetune_{seed}"].weights()
        policy = lm.tuning(config.adapter, language.config, start, seed).policy
        made = runs.training(
            config,
            language,
            seed,
            start=start,
            objective=functools.partial(_defender, config.sft),
            learning=learning,
            count=count,
            source=source,
            prepare=latent_attack(language.model, places=config.places, policy=policy, **attack),
            prepare_every=config.hold,
        )
        rows = shapes.text(learning.batch_size, config.data.length)
        return made._replace(batch=dict.fromkeys(("forget", "refusal", "retain"), rows))

    depends = runs.unlearnt_from(config, seed) | attack
    depends |= {"places": config.places, "hold": config.hold, "sft": config.sft}
    return Stage(f"{name}_{seed}", build, (f"finetune_{seed}",), depends)


def _defender(sft: float, s: Setting) -> Objective:
    return latent_adversarial(s.model, sft=sft, policy=s.policy)


def _relearn(config: Config, language: lm.Language, seed: int, name: str) -> Stage:
    """Trained again on every second of the questions to forget."""

    def build(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            half = qa.load(config.data).forget[::2]
            return runs.answer_source(config, language, half, seed, config.relearn.batch_size)

        return runs.training(
            config,
            language,
            seed,
            start=found[f"{name}_{seed}"].weights(),
            objective=runs.answers_nll,
            learning=config.relearn,
            count=-(-qa.sizes(config.data)[0] // 2),
            source=source,
        )

    depends = runs.unlearnt_from(config, seed) | {"relearn": config.relearn}
    return Stage(f"{name}_relearned_{seed}", build, (f"{name}_{seed}",), depends)


def _attack(config: Config, language: lm.Language, seed: int, name: str) -> Stage:
    """What a fresh adversary gets out of the finished model, for each radius."""

    def build(found: Found) -> Compute:
        weights, rules = found[f"{name}_{seed}"].weights(), decoder.rules(language.config)

        def measure() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            params = {"model": materialise(weights, mesh, rules), "aux": {}}
            records = qa.load(config.data).forget
            rows = qa.answer_rows(language.tokenizer(), records, config.data.length)
            made: dict[str, Any] = {}
            for i, scoring in enumerate(_attacks(config)):
                score = scorers.make_scorer(
                    language.model,
                    own_weights,
                    mesh=mesh,
                    batch_size=config.score_batch,
                    scoring=scoring,
                )
                chances = tofu.probability(scorers.loss(score(params, {}, {"all": rows})["all"]))
                made |= {f"attacked_{i}": float(np.mean(chances)), f"attacked_rows_{i}": chances}
            return None, made

        def plan(mesh: Any) -> Mapping[str, Program]:
            params = {"model": shapes_on(weights, mesh, rules), "aux": {}}
            return {
                f"attack_{i}": program
                for i, scoring in enumerate(_attacks(config))
                for program in scorers.scorer_programs(
                    language.model,
                    own_weights,
                    params,
                    {},
                    batch_size=config.score_batch,
                    length=config.data.length,
                    scoring=scoring,
                ).values()
            }

        return Compute(measure, plan=plan)

    depends = {"places": config.places, "eps": config.eps, "radii": config.radii}
    depends |= {"rate": config.attack_rate, "steps": config.attack_steps}
    return Stage(f"{name}_{seed}_attacked", build, (f"{name}_{seed}",), depends)


def _attacks(config: Config) -> tuple[Any, ...]:
    return tuple(
        _scoring(config.places, radius * config.eps, config.attack_rate, config.attack_steps)
        for radius in config.radii
    )


@functools.cache  # one function, so that all stages share one compilation
def _scoring(places: tuple[str, ...], eps: float, rate: float, steps: int) -> Any:
    return functools.partial(attacked_scores, places=places, eps=eps, rate=rate, steps=steps)


def report(config: Config, artefacts: Found, folder: Any):
    return latent_report.results(artefacts, config.eps, config.radii, config.repetitions, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
