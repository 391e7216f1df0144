"""DDK: drawing more from the domains in which a student is farthest behind helps the worst of them.

Paper: Liu et al. 2024 (DDK, arXiv 2407.16154). A teacher learns four domains of characters: a
text, a Markov chain, sums and brackets. A smaller student, weak in two of them, learns from it by
next-token loss and KL, in rounds of equal length. By uniform weights it meets all domains alike;
by DDK the weights of the next round follow from the perplexities of student and teacher.

Claim: after equally many tokens the largest ratio of perplexities is smaller with DDK, and the mean
loss is not worse.

    python -m experiments.distillation.ddk_domains smoke     # generated text, two rounds: 20 s
    python -m experiments.distillation.ddk_domains laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder). A round is
a stage that goes on from the whole state of the one before, so a run that was stopped goes on with
the round it was in. Weights are decided on validation rows, and test rows are reported. The first
round is uniform in both, as in the paper.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.distillation.common import runs
from experiments.distillation.common.config import SMALL
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text, rows
from experiments.distillation.parts import ddk_report, domains
from kd_jax.data import domains as ddk
from kd_jax.data import shapes, sources
from kd_jax.launch import requests, rounds, run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.stages import Evaluation, Stage, Training
from kd_jax.losses.divergences import forward_kl, reverse_kl
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Objective

CLAIMS = ddk_report.CLAIMS
NAMES: tuple[domains.Name, ...] = ("text", "chain", "sums", "brackets")
DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    text: Text = dataclasses.field(default_factory=Text)
    """The text, and the rows held out of every domain, for validation and again for the test."""
    rows: int = 2000
    """Rows to train on in each domain that is generated."""
    known: tuple[domains.Name, ...] = ("chain", "brackets")
    """What the student knows before it meets the teacher; in the others it is weak."""
    weak: float = 0.05
    """Share of the others in the rows that it has learnt until then."""
    teacher: DecoderConfig
    student: DecoderConfig
    learn_teacher: Learning
    learn_start: Learning
    """How the student learns what it has seen."""
    learn: Learning
    """How it learns from the teacher; the steps are those of all rounds together."""
    rounds: int = 10
    """Rounds, between which weights move."""
    alpha: float = 0.5
    """DDK's share of the weights that is not uniform."""
    gamma: float = 0.2
    """Weight of the divergence beside the next-token loss."""
    temperature: float = 1.0
    """Temperature of the divergence."""
    divergence: Literal["forward", "reverse"] = "forward"
    """KL from the teacher to the student, or back: the paper's notation allows both."""
    seeds: int = 3
    """Students of each kind; seed s fixes initial weights and the order of rows."""
    seed: int = 0
    """The first of them."""
    score_batch: int = 64
    """Rows measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "rows", "rounds", "gamma", "temperature", "seeds", "score_batch")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: got {self.alpha}, takes (0, 1]")
        if self.learn.steps % self.rounds:
            raise ValueError(
                f"rounds: got {self.rounds}, takes divisors of learn.steps, {self.learn.steps}"
            )
        if not 0 < len(set(self.known)) == len(self.known) < len(NAMES):
            said = " ".join(self.known) or "none"
            raise ValueError(f"known: got {said}, takes domains once each, not none and not all")
        if not 0 <= self.weak < 1:
            raise ValueError(f"weak: got {self.weak}, takes [0, 1)")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def arms(self) -> dict[str, float]:
        """{way: its alpha}; 0 keeps the weights uniform."""
        return {"uniform": 0.0, "ddk": self.alpha}


PRESETS = {
    "smoke": Config(
        text=Text(length=32, held_out=16),
        rows=200,
        teacher=SMALL,
        student=dataclasses.replace(SMALL, width=16, mlp=32),
        learn_teacher=Learning(rate=1e-2, steps=60),
        learn_start=Learning(rate=1e-2, steps=20),
        learn=Learning(rate=1e-2, steps=20),
        rounds=2,
        seeds=2,
    ),
    "laptop": Config(
        text=Text(shakespeare=True, length=64, held_out=128),
        rows=4000,
        teacher=dataclasses.replace(
            SMALL, width=96, depth=2, heads=3, kv_heads=3, head_dim=32, mlp=288
        ),
        student=dataclasses.replace(
            SMALL, width=64, depth=2, heads=2, kv_heads=2, head_dim=32, mlp=128
        ),
        learn_teacher=Learning(rate=2e-3, steps=1200),
        learn_start=Learning(rate=3e-3, steps=600),
        learn=Learning(rate=2e-3, steps=400),
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    data = {"text": identity(config.text), "rows": config.rows, "score_batch": config.score_batch}
    teacher = {"teacher": identity(config.teacher), "learn": identity(config.learn_teacher)}
    found = [
        Stage("teacher", lambda _: _teacher(config), (), data | teacher | {"seed": config.seed})
    ]
    for seed in config.repetitions:
        start = data | {"student": identity(config.student), "learn": identity(config.learn_start)}
        found.append(
            Stage(
                f"start_{seed}",
                functools.partial(_start, config, seed),
                ("teacher",),
                start | {"known": config.known, "weak": config.weak, "seed": seed},
            )
        )
        for arm in config.arms:
            names = [f"{arm}_{i + 1}_{seed}" for i in range(config.rounds)]
            made = functools.partial(_rounds, config, arm, seed)
            found += requests.stream(f"start_{seed}", names, made)
    return tuple(found)


def _rounds(config: Config, arm: str, seed: int, request: requests.Request) -> tuple[Stage, ...]:
    depends = {
        "learn": identity(config.learn),
        "rounds": config.rounds,
        "alpha": config.arms[arm],
        "loss": [config.gamma, config.temperature, config.divergence],
        "score_batch": config.score_batch,
        "seed": seed,
    }
    build = functools.partial(_round, config, config.arms[arm], seed, request)
    return (Stage(request.result, build, ("teacher", request.start), depends),)


def _teacher(config: Config) -> Training:
    objective = supervise(decoder.decoder(config.teacher), {"nll": next_token_nll})
    training = _training(
        config, config.teacher, objective, config.learn_teacher, config.seed, _uniform
    )
    return training._replace(evaluations=(_evaluation(config, config.teacher, training.steps),))


def _start(config: Config, seed: int, found: Mapping[str, Any]) -> Training:
    """The student of what it knows; its last measurement gives DDK's first weights."""
    objective = supervise(decoder.decoder(config.student), {"nll": next_token_nll})

    def shares() -> np.ndarray:
        known = np.isin(NAMES, config.known)
        return np.where(known, (1 - config.weak) / known.sum(), config.weak / (~known).sum())

    training = _training(config, config.student, objective, config.learn_start, seed, shares)
    decided = _evaluation(
        config,
        config.student,
        training.steps,
        lambda student: ddk.initial_weights(student, _teacher_perplexities(found)),
    )
    return training._replace(evaluations=(decided,))


def _round(
    config: Config, alpha: float, seed: int, request: requests.Request, found: Mapping[str, Any]
) -> Training:
    """The first round draws uniformly; the others by what the one before decided."""
    loss = functools.partial(DIVERGENCES[config.divergence], temperature=config.temperature)
    student, teacher = decoder.decoder(config.student), decoder.decoder(config.teacher)
    part = token_divergence(lambda s, t, y: loss(s, t), config.gamma, hard=1.0)
    before = found[request.start]
    first = request.number == 0

    def decided() -> np.ndarray:
        return np.array([before.values[f"domains/{name}_weight"] for name in NAMES])

    def moved(perplexities: np.ndarray) -> np.ndarray:
        of_teacher = _teacher_perplexities(found)
        return ddk.updated_weights(decided(), perplexities, of_teacher, alpha=alpha)

    length = config.learn.steps // config.rounds
    draws = _uniform if first else decided
    objective = distil(student, teacher, {"kd": part})
    training = _training(config, config.student, objective, config.learn, seed, draws)
    return training._replace(
        weights=before.weights() if first else training.weights,
        start=None if first else before.weights(),
        steps=(request.number + 1) * length,
        frozen=weights.joined(teacher=found["teacher"].weights()),
        frozen_rules={"teacher": decoder.rules(config.teacher)},
        evaluations=(_evaluation(config, config.student, length, moved),),
        result=rounds.whole,
    )


def _training(
    config: Config,
    model: DecoderConfig,
    objective: Objective,
    learning: Learning,
    seed: int,
    draws: Callable[[], np.ndarray],
) -> Training:
    """A model from scratch on rows of the domains, by weights that are asked for when it runs."""

    @functools.cache
    def source() -> tuple[sources.Mixture, np.ndarray]:
        parts = [
            sources.array_batches(
                rows(domain.train), seed=seed, name=name, batch_size=learning.batch_size
            )
            for name, domain in _domains(config).items()
        ]
        return sources.mixture(parts, seed=seed, batch_size=learning.batch_size), draws()

    def batches(step: int, part: slice) -> sources.Batch:
        mixed, drawn = source()
        return mixed(step, part, drawn)

    of_source = {"source": jax.ShapeDtypeStruct((learning.batch_size,), np.int32)}
    batch = shapes.text(learning.batch_size, config.text.length) | of_source
    made = runs.training(config, model, objective, learning, seed)
    return made._replace(batches=batches, batch=batch)


def _evaluation(
    config: Config,
    model: DecoderConfig,
    every: int,
    decide: domains.Decide | None = None,
) -> Evaluation:
    measured = domains.Measured(config.text, config.rows, NAMES, config.score_batch)
    return domains.along(measured, model, every, decide)


def _uniform() -> np.ndarray:
    return np.full(len(NAMES), 1 / len(NAMES))


def _teacher_perplexities(found: Mapping[str, Any]) -> np.ndarray:
    return domains.perplexities(found["teacher"].values, NAMES, "validation")


def _domains(config: Config) -> dict[domains.Name, domains.Domain]:
    return {name: domains.load(name, config.text, config.rows) for name in NAMES}


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return ddk_report.results(NAMES, config.rounds, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
