"""Knowledge between any two pretrained classifiers, better or worse, by a partition of the images.

Paper: Roth et al. 2024, fantastic gains and where to find them (arXiv 2310.17653). Six perceptrons
of two widths know some images in common; besides these one has learned many of some classes,
another many of others, one many of all, one none. Each of them then goes on learning from each of
the others, on the images that all of them know: from its outputs on every image, from outputs and
labels (with the weights averaged along the way, too), and by partition: from the teacher where that
one knows more, and from a copy of itself as it was elsewhere. Who knows more is told by the
probability of the label, or without labels by the largest one. A repetition is a pool of six anew.

Measured are the accuracy that a student gains, how often it gains any, and the images that of two
models only one gets right. T is 1; rates and the averaging's constants are ours.

Claim: any model knows what another does not, and by partition even a weaker teacher's knowledge is
won without losing what was known.

    python -m experiments.distillation.any_pair_transfer smoke     # digits, three models: 12 s
    python -m experiments.distillation.any_pair_transfer laptop    # Fashion-MNIST, 5 pools

`laptop` needs Fashion-MNIST's files (environment KD_JAX_DATA, or --pictures.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common import endings, pupils
from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import pool, pool_report
from experiments.distillation.parts.answers import answers
from experiments.distillation.parts.pool import ARMS, MEMBERS, SIZES, ArmName, Name, Size
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive, identity
from kd_jax.launch.stages import Compute, Evaluation, Stage, Training
from kd_jax.losses.partition import flips
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.distil import distil, student_state
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.repetition import batched, repeated
from kd_jax.steps import make_train_step, with_ema
from kd_jax.types import TrainStep

CLAIMS = pool_report.CLAIMS
Found = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    members: tuple[Name, ...] = get_args(Name)
    """Models of a pool."""
    arms: tuple[ArmName, ...] = get_args(ArmName)
    """Ways of transfer that are compared."""
    narrow: int = 16
    """Hidden units of a narrow model."""
    wide: int = 64
    """Hidden units of a wide one."""
    shared: int = 1000
    """Training images that all models know, and on which knowledge is transferred."""
    decay: float = 0.98
    """What slow weights keep of themselves,"""
    every: int = 5
    """every so many steps."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "members", "arms")
        check_positive(self, "narrow", "wide", "shared", "every")
        if len(self.members) < 2:
            raise ValueError(f"members: got {len(self.members)}, takes at least two: pairs")
        if self.shared >= self.pictures.images:
            raise ValueError(
                f"shared: got {self.shared}, takes fewer than pictures.images, "
                f"{self.pictures.images}"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: got {self.decay}, takes 0 <= decay < 1")

    def network(self, size: Size) -> MLPConfig:
        width = {"narrow": self.narrow, "wide": self.wide}[size]
        return MLPConfig(inputs=self.pictures.side**2, widths=(width,), classes=10)

    @property
    def sizes(self) -> list[Size]:
        return [size for size in SIZES if any(MEMBERS[m].size == size for m in self.members)]


PRESETS = {
    "smoke": Config(
        members=("narrow_all", "narrow_low", "narrow_few"),
        arms=("mcl", "dp"),
        shared=200,
        learn_teacher=Learning(rate=1e-2, steps=100, batch_size=32),
        learn=Learning(rate=1e-3, steps=20, batch_size=32),
        seeds=2,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=5000, validation=1000, test=5000),
        learn_teacher=Learning(rate=2e-3, steps=1000, batch_size=64),
        learn=Learning(rate=3e-4, steps=300, batch_size=64),
        seed=10,  # sizes, rates and steps were chosen on seeds from 0, by validation images
        score_batch=1000,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return (
        *(_member(config, name) for name in config.members),
        _flips(config),
        *(_transfer(config, size, arm) for arm in config.arms for size in config.sizes),
    )


def _member(config: Config, name: Name) -> Stage:
    """The models of one kind, one of each pool, with their logits of the shared images."""
    about = MEMBERS[name]
    network = config.network(about.size)
    model = config.model(network)
    whole = config.learn_teacher
    learning = dataclasses.replace(
        whole,
        steps=pool.steps(about.learned, whole.steps, config.shared, config.pictures.images),
    )
    seeds = [10 * seed + get_args(Name).index(name) for seed in config.repetitions]

    def images(_: int) -> dict[str, np.ndarray]:
        examples = pictures_lib.load(config.pictures).train
        return pool.known(examples, config.shared, about.learned)

    def build(_: Found) -> Training:
        objective = supervise(model, {"ce": label_cross_entropy})
        step = make_train_step(objective, learning.optimizer())
        training = pupils.students(
            config, model, step, seeds=seeds, learning=learning, images=images
        )
        logits = answers(
            "shared",
            learning.steps,
            model,
            functools.partial(_shared, config),
            pupils.batch_shapes(config, config.score_batch),
        )
        return training._replace(
            step=repeated(step, len(seeds), over=batched),
            evaluations=(*training.evaluations, logits),
        )

    depends = {
        "network": identity(network),
        "learned": about.learned,
        "shared": config.shared,
        "pictures": identity(config.pictures),
        "learn": identity(learning),
        "seeds": list(seeds),
    }
    return Stage(name, build, (), depends)


def _shared(config: Config) -> dict[str, np.ndarray]:
    return pictures_lib.part(pictures_lib.load(config.pictures).train, slice(config.shared))


def _flips(config: Config) -> Stage:
    """Rows "positive" [pools, student, teacher]: % of test images that the teacher alone knows."""

    def build(found: Found) -> Compute:
        def measure() -> tuple[None, Mapping[str, Any]]:
            targets = jnp.asarray(pictures_lib.load(config.pictures).test["targets"])
            predicted = [endings.ending(found[name]).predicted for name in config.members]
            said = jax.nn.one_hot(np.stack(predicted, 1), 10)  # [pools, M, N, C]
            positive = [
                [[100 * flips(s, t, targets)[0].mean() for t in models] for s in models]
                for models in said
            ]
            return None, {"positive": np.array(positive, np.float32)}

        return Compute(measure)

    return Stage("flips", build, config.members, {})


def _transfer(config: Config, size: Size, arm: ArmName) -> Stage:
    """All students of one size in all pools, with every teacher, side by side."""
    network, learning = config.network(size), config.learn
    model = config.model(network)
    pairs = pool.pairs(config.members, size)
    # Each training by its number, which fixes its order of images, the same in every arm.
    numbers = [100 * seed + i for seed in config.repetitions for i in range(len(pairs))]

    def build(found: Found) -> Training:
        step = make_train_step(
            distil(model, stored_teacher(), ARMS[arm].parts, teacher_policy=nothing),
            learning.optimizer(),
        )
        logits = functools.cache(
            lambda name: found[name].rows[f"{found[name].values['steps']}/shared/logits"]
        )

        def images(number: int) -> dict[str, np.ndarray]:
            at, pair = number // 100 - config.seed, pairs[number % 100]
            return _shared(config) | {
                "teacher_logits": logits(pair.teacher)[at],
                "teacher_initial": logits(pair.student)[at],
            }

        names = list(dict.fromkeys(pair.student for pair in pairs))
        start = pool.chosen(
            [found[name].weights() for name in names],
            [(names.index(pairs[n % 100].student), n // 100 - config.seed) for n in numbers],
        )
        slow = ARMS[arm].slow
        training = pupils.students(
            config, model, step, seeds=numbers, start=start, images=images,
            state=(lambda carry: carry["inner"]) if slow else student_state,
        )  # fmt: skip
        if slow:
            step = with_ema(step, config.decay, every=config.every)
            training = training._replace(
                evaluations=[_of_slow_weights(each) for each in training.evaluations]
            )
        return _with_answers(training, step, len(numbers))

    depends = {
        "arm": arm,
        "network": identity(network),
        "pictures": identity(config.pictures),
        "shared": config.shared,
        "learn": identity(learning),
        "seeds": list(config.repetitions),
        "slow": [config.decay, config.every] if ARMS[arm].slow else None,
    }
    return Stage(f"{arm}_{size}", build, config.members, depends)


def _with_answers(training: Training, step: TrainStep, count: int) -> Training:
    """The training of so many on stored answers too; no weights are kept."""
    logits = jax.ShapeDtypeStruct((training.batch_size, count, 10), np.float32)
    return training._replace(
        step=repeated(step, count, over=batched),
        batch=training.batch | {"teacher_logits": logits, "teacher_initial": logits},
        result=lambda reached, _: None,
    )


def _of_slow_weights(each: Evaluation) -> Evaluation:
    return each._replace(
        run=lambda params, carry, frozen: each.run({"model": carry["ema"]}, carry, frozen),
        plan=lambda params, carry, frozen: each.plan({"model": carry["ema"]}, carry, frozen),
    )


def report(config: Config, artefacts: Found, folder: Path) -> Results:
    return pool_report.results(config.members, config.arms, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
