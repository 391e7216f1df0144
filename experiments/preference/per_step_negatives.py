"""Wrong steps are unlearnt from wrong answers: per-step DPO on chains of arithmetic.

Paper: Setlur et al. 2024 (arXiv 2406.14532; details UNVERIFIED). A small transformer learns chains
of modular arithmetic from demonstrations that often leave out a multiplication and make up for it
in the next step: their answers are right, so a verifier of answers keeps them. All methods start
from it, and use the same problems:

- SFT learns the demonstrations for as long again;
- RFT learns the model's own right responses besides;
- DPO prefers a right response to a wrong one of the same problem;
- per-step DPO finds, by rollouts from each prefix of a wrong response, the first step after which
  success is less likely, and prefers a right continuation from there that begins otherwise.

Measured is the share of right answers, on problems like those learnt and on such where the shortcut
breaks: multiplications in a row, of which a model that leaves out one has to do several at once.

Claim: per-step DPO is right there more often than DPO, DPO than RFT, and RFT than SFT.

    python -m experiments.preference.per_step_negatives smoke     # a few steps: 20 s
    python -m experiments.preference.per_step_negatives laptop    # 4 seeds: 3 minutes

It needs nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.distillation.common.learning import Learning
from experiments.preference.parts import chains, chains_report, chains_stages
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.stages import Stage
from kd_jax.models.config import DecoderConfig

CLAIMS = chains_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    modulus: int = 11
    """Numbers are 0 to this, less one; a prime."""
    factors: int = 8
    """How many numbers multiplications are by, from 2 on."""
    length: int = 5
    """Operations of a problem."""
    shortcut: float = 0.5
    """How often a demonstration leaves out a multiplication."""
    problems: int = 2000
    """Problems that all methods use."""
    tested: int = 1000
    """Problems of each kind that are measured on."""
    model: DecoderConfig
    """The transformer; its vocabulary is that of the task."""
    learn: Learning
    """How it learns the demonstrations."""
    imitate: Learning
    """How SFT and RFT go on."""
    prefer: Learning
    """How DPO and per-step DPO go on."""
    beta: float = 0.5
    """Of DPO."""
    samples: int = 8
    """Responses of the model to each problem."""
    rollouts: int = 24
    """Continuations of each prefix of a wrong response."""
    batch: int = 1024
    """Prompts that are continued at once."""
    seeds: int = 4
    """Repetitions of everything."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "problems", "tested", "beta", "samples", "rollouts", "batch", "seeds")
        if self.length < 3:
            raise ValueError(f"length: got {self.length}, takes at least 3")
        if not 0 <= self.shortcut <= 1:
            raise ValueError(f"shortcut: got {self.shortcut}, takes a number in [0, 1]")
        if not 1 <= self.factors <= self.modulus - 2:
            raise ValueError(f"factors: got {self.factors}, takes 1 to {self.modulus - 2}")
        if self.model.vocab != self.task.vocabulary:
            raise ValueError(
                f"model.vocab: got {self.model.vocab}, takes the task's {self.task.vocabulary}"
            )

    @property
    def task(self) -> chains.Task:
        return chains.Task(self.modulus, self.factors, self.length, self.shortcut)

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


MODEL = DecoderConfig(
    vocab=31, width=64, depth=2, heads=4, kv_heads=4, head_dim=16, mlp=128, remat=False
)

PRESETS = {
    "smoke": Config(
        model=dataclasses.replace(MODEL, vocab=8, width=16, mlp=32, depth=1),
        problems=64,
        tested=64,
        learn=Learning(rate=1e-2, steps=100),
        imitate=Learning(rate=1e-3, steps=5),
        prefer=Learning(rate=1e-3, steps=5),
        rollouts=16,
        batch=512,
        seeds=1,
        modulus=3,
        factors=1,
    ),
    "laptop": Config(
        model=MODEL,
        learn=Learning(rate=3e-3, steps=1000, batch_size=64),
        imitate=Learning(rate=3e-3, steps=300, batch_size=64),
        prefer=Learning(rate=1e-4, steps=300, batch_size=64),
        seed=10,  # rates and beta were chosen on seed 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        stage for seed in config.repetitions for stage in chains_stages.of_seed(config, seed)
    )


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return chains_report.results(config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
