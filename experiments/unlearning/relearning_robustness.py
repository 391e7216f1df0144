"""Two attacks on unlearned models: a few steps on part of what was forgotten, and fewer bits.

Papers: Hu et al. 2024 (arXiv 2406.13356) relearn a part of the forgotten answers and look whether
the others come back; Zhang et al. 2024 (arXiv 2410.16454) round the weights to 8 and 4 bits; Fan et
al. 2024 (SimNPO, arXiv 2410.07163) find SimNPO harder to relearn than NPO. A language model learns
authors and forgets some of them by several methods. Of a model that never saw them the attacks can
bring nothing back: what they do to the retrained model is what has to be taken off.

Claim: unlearning hides more than it removes; SimNPO hides less than NPO. At `laptop` both hold for
relearning; rounding to 4 bits brings nothing back.

    python -m experiments.unlearning.relearning_robustness smoke     # generated authors: 20 s
    python -m experiments.unlearning.relearning_robustness laptop    # real TOFU, 3 seeds
    python -m experiments.unlearning.relearning_robustness laptop --model smollm2 --adapter.rank 16

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.unlearning.common import lm, measuring, qa, runs
from experiments.unlearning.common.compared import Compared
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS
from experiments.unlearning.parts import relearning_report
from kd_jax.data import sources
from kd_jax.evaluation.quantisation import round_to_nearest
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Program, Stage, Training, materialise, shapes_on
from kd_jax.models import decoder

Found = Mapping[str, Any]

CLAIMS = relearning_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Compared):
    relearn: Learning
    """The first attack; an epoch is a pass over the answers that the attacker has."""
    known: float = 0.5
    """The share of the forgotten answers that the attacker has; the others are held out."""
    bits: tuple[int, ...] = (8, 4)
    """The second attack: bits of a weight."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "bits")
        if any(not 2 <= bits <= 16 for bits in self.bits):
            raise ValueError(f"bits: got {' '.join(map(str, self.bits))}, takes 2 to 16")
        count = qa.sizes(self.data)[0]
        if not 0 < round(self.known * count) < count:
            raise ValueError(
                f"known: got {self.known}, takes a share that leaves some of the {count} answers"
            )
        if self.relearn.batch_size % self.microbatches:
            raise ValueError(
                f"microbatches: got {self.microbatches}, takes divisors of "
                f"{self.relearn.batch_size}"
            )

    def attackers(self, seed: int) -> np.ndarray:
        """Places, in what is to be forgotten, of the answers that the attacker has."""
        count = qa.sizes(self.data)[0]
        order = np.random.default_rng(seed).permutation(count)
        return np.sort(order[: round(self.known * count)])


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=2, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=4, batch_size=16),
        methods=("npo_rt",),
        relearn=Learning(rate=1e-3, epochs=4, batch_size=16),
        bits=(4,),
        evaluations=2,
        evaluate_retain=20,
        wrong_answers=0,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(lm.TINY, width=128, depth=2, kv_heads=4, head_dim=32),
        data=qa.Data(tofu=True, forget_authors=2, retain_authors=8, length=88),
        finetune=Learning(rate=3e-3, epochs=20, batch_size=16),
        unlearn=Learning(rate=5e-4, epochs=10, batch_size=10, warmup=0.2),
        relearn=Learning(rate=2e-4, epochs=10, batch_size=10),
        evaluations=10,
        wrong_answers=0,
        score_batch=40,
        seeds=3,
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        language = runs.language(config, seed)
        trained = [
            runs.finetune(config, language, seed),
            runs.reference(config, language, seed),
            *(
                runs.forget(config.of(name), language, seed, name, METHODS[name])
                for name in config.methods
            ),
            runs.retrain(config, language, seed),
        ]
        unlearned = (*config.methods, "retrain")
        found += trained
        found += [_relearning(config, language, seed, name) for name in unlearned]
        for name in ("finetune", *unlearned):
            found.append(runs.score(config, language, seed, name))
            found += [_rounding(config, language, seed, name, bits) for bits in config.bits]
    return tuple(found)


def _relearning(config: Config, language: lm.Language, seed: int, name: str) -> Stage:
    """Training on the answers that the attacker has; all forgotten answers are measured."""
    model = f"{name}_{seed}"

    def build(found: Found) -> Training:
        chosen = config.attackers(seed)

        @functools.cache
        def source() -> sources.Source:
            forget = qa.load(config.data).forget
            records = [forget[i] for i in chosen]
            size = config.relearn.batch_size
            return runs.answer_source(config, language, records, seed, size)

        return runs.training(
            config,
            language,
            seed,
            start=found[model].weights(),
            objective=runs.answers_nll,
            learning=config.relearn,
            count=len(chosen),
            source=source,
        )

    depends = {"relearn": config.relearn, "known": config.known, "keep": config.evaluate_retain}
    depends |= {"evaluations": config.evaluations, "adapter": config.adapter}
    return Stage(f"{name}_relearned_{seed}", build, (model,), depends)


def _rounding(config: Config, language: lm.Language, seed: int, name: str, bits: int) -> Stage:
    """The score of the model with its matrices rounded to so many bits."""
    model, rules = f"{name}_{seed}", decoder.rules(language.config)
    attack = functools.partial(round_to_nearest, bits=bits)
    scored = runs.score(config, language, seed, name)

    def build(found: Found) -> Compute:
        def measure() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            weights = jax.jit(attack)(materialise(found[model].weights(), mesh, rules))
            return None, measuring.figures(config, language, weights, mesh)

        def plan(mesh: Any) -> Mapping[str, Program]:
            shapes = shapes_on(found[model].weights(), mesh, rules)
            whole: Any = scored.build(found)
            return {"rounding": Program(jax.jit(attack), (shapes,)), **whole.plan(mesh)}

        return Compute(measure, plan=plan)

    return Stage(f"{name}_{bits}bit_{seed}", build, (model,), scored.depends)


def report(config: Config, artefacts: Found, folder: Path) -> Results:
    labels = {"finetune": "fine-tuned"}
    labels |= {name: METHODS[name].label for name in config.methods}
    labels["retrain"] = "retrained"
    return relearning_report.results(
        labels,
        {seed: config.attackers(seed) for seed in config.repetitions},
        config.bits,
        artefacts,
        folder,
    )


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
