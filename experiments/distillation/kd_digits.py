"""Distilling the knowledge in a neural network: a small student learns more from a teacher's soft
targets than from labels alone.

Paper: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531). A wide MLP is trained on all training images;
small MLPs are then trained on a few hundred of them, on labels alone and with the teacher's soft
targets at temperature T, from the same initial weights and on the same batches, for several seeds.

Claim: the student with soft targets has a higher test accuracy than the student without.

    python -m experiments.distillation.kd_digits smoke     # digits, two seeds: 15 s
    python -m experiments.distillation.kd_digits laptop    # digits and Fashion-MNIST: 1 minute

`laptop` needs Fashion-MNIST (environment KD_JAX_DATA or a download). That the teacher has seen more
images than the students is part of the set-up: on digits alone accuracy saturates.

Measured at `laptop` (two CPU cores, 2026-11): 2.1 points more on digits, 4.6 on Fashion-MNIST.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kd_jax import optim
from kd_jax.data import arrays, images, prepare, shapes, sources
from kd_jax.data.builders.digits import Digits
from kd_jax.data.builders.fashion_mnist import FashionMnist
from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch import evaluation, plots, run, weights
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.config import Settings, check_positive, not_identity
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.stages import Evaluation, Program, Stage, Training, mesh_of
from kd_jax.models import mlp
from kd_jax.objectives.distil import distil, labels, soft_labels
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_accuracy, label_cross_entropy
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Model, Objective

BUILDERS = {"digits": Digits, "fashion_mnist": FashionMnist}
ARMS = ("alone", "taught")
TEST_BATCH = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    fashion: bool = False
    """Fashion-MNIST besides digits."""
    folder: str | None = not_identity(None)
    """Where Fashion-MNIST's files lie (by default the environment's KD_JAX_DATA)."""
    seeds: int = 5
    """Students of each kind; seed s fixes initial weights, images and their order."""
    images: int = 200
    """Training images of a student."""
    teacher_widths: tuple[int, ...] = (256, 256)
    """Hidden layers of the teacher."""
    student_widths: tuple[int, ...] = (16,)
    """Hidden layers of a student."""
    temperature: float = 4.0
    """Softens both distributions."""
    soft: float = 0.9
    """Weight of the soft targets; labels have 1 - soft."""
    rate: float = 3e-3
    """Peak learning rate of AdamW."""
    teacher_steps: int = 1500
    """Training steps of the teacher."""
    student_steps: int = 1000
    """Training steps of a student."""
    batch_size: int = 64
    """Images in a batch."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.soft <= 1:
            raise ValueError(f"soft: got {self.soft}, takes 0 to 1")
        check_positive(self, "temperature", "images", "rate", "teacher_steps", "student_steps")
        check_positive(self, "batch_size", "teacher_widths", "student_widths")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")

    @property
    def data(self) -> tuple[str, ...]:
        return ("digits", "fashion_mnist") if self.fashion else ("digits",)


PRESETS = {
    "smoke": Config(seeds=2, teacher_steps=600, student_steps=800),
    "laptop": Config(fashion=True),
}


def _gain(data: str):
    def effect(results: Results) -> Effect | None:
        found = results.values["gain"].get(data)
        return found and Effect(**found)

    return effect


CLAIMS = tuple(
    Claim(
        f"On {name}, students taught with soft targets have a higher test accuracy than students "
        "trained on labels alone (mean difference of paired seeds, in points).",
        "arXiv 1503.02531, section 3 (MNIST)",
        "MNIST: 146 test errors without, 74 with soft targets (10,000 images)",
        _gain(data),
        above(0.0),
    )
    for data, name in (("digits", "digits"), ("fashion_mnist", "Fashion-MNIST"))
)


@functools.cache
def _images(data: str, folder: str | None) -> dict[str, dict[str, np.ndarray]]:
    splits = prepare.load(BUILDERS[data], manual_dir=folder)
    return {split: images.image_arrays(splits[split]) for split in ("train", "test")}


def _model(data: str, widths: tuple[int, ...]) -> Model:
    side = 8 if data == "digits" else 28
    return mlp.mlp(mlp.MLPConfig(inputs=side * side, widths=widths, classes=10))


def _batch(data: str, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    return shapes.images(rows, 8 if data == "digits" else 28)


def stages(config: Config) -> tuple[Stage, ...]:
    found = []
    for data in config.data:
        teacher = f"teacher_{data}"
        found.append(Stage(teacher, lambda _, data=data: _teacher(config, data)))
        found += [
            Stage(
                f"{arm}_{data}_{seed}",
                lambda artefacts, data=data, seed=seed, arm=arm, teacher=teacher: _student(
                    config, data, seed, artefacts[teacher].weights() if arm == "taught" else None
                ),
                (teacher,) if arm == "taught" else (),
            )
            for seed in range(config.seeds)
            for arm in ARMS
        ]
    return tuple(found)


def _teacher(config: Config, data: str) -> Training:
    model = _model(data, config.teacher_widths)
    objective = supervise(model, {"ce": label_cross_entropy})

    def train() -> dict[str, np.ndarray]:
        return _images(data, config.folder)["train"]

    return _training(config, data, model, objective, train, config.teacher_steps, seed=1000)


def _student(
    config: Config, data: str, seed: int, teacher_weights: weights.Weights | None
) -> Training:
    student = _model(data, config.student_widths)

    def few() -> dict[str, np.ndarray]:
        train = _images(data, config.folder)["train"]
        rng = np.random.Generator(np.random.Philox(key=seed))
        return arrays.take(train, rng.permutation(arrays.size(train))[: config.images])

    if teacher_weights is None:
        objective, frozen = supervise(student, {"ce": label_cross_entropy}), None
    else:
        parts = {
            "ce": labels(1 - config.soft),
            "kd": soft_labels(config.soft, temperature=config.temperature),
        }
        objective = distil(student, _model(data, config.teacher_widths), parts)
        frozen = weights.joined(teacher=teacher_weights)
    training = _training(config, data, student, objective, few, config.student_steps, seed=seed)
    return training._replace(frozen=frozen, frozen_rules={"teacher": mlp.RULES} if frozen else {})


def _training(
    config: Config, data: str, model: Model, objective: Objective, train: Any, steps: int, seed: int
) -> Training:
    schedule = optim.warmup_cosine(config.rate, warmup=steps // 20, steps=steps)

    @functools.cache
    def source() -> sources.Source:
        return sources.array_batches(
            train(), seed=seed, name="images", batch_size=config.batch_size
        )

    return Training(
        step=make_train_step(objective, optim.adamw(schedule, weight_decay=1e-4)),
        weights=weights.from_init(model.init, jax.random.key(seed)),
        batches=lambda step, rows: source()(step, rows),
        batch=_batch(data, config.batch_size),
        batch_size=config.batch_size,
        steps=steps,
        rules=mlp.RULES,
        seed=seed,
        evaluations=(_test(config, data, model, every=max(1, steps // 4)),),
    )


def _test(config: Config, data: str, model: Model, *, every: int) -> Evaluation:
    measured = supervise(model, {"ce": label_cross_entropy}, metrics={"accuracy": label_accuracy})
    step = make_eval_step(measured)

    def alone(params) -> Any:
        return {"model": params["model"], "aux": {}}

    def measure(params, carry, frozen) -> Mapping[str, float]:
        test, mesh = _images(data, config.folder)["test"], mesh_of(params)
        values, _ = evaluate(step, alone(params), {}, {}, test, batch_size=TEST_BATCH, mesh=mesh)
        return {"accuracy": 100 * values["accuracy"], "ce": values["ce"]}

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        batch, mesh = _batch(data, TEST_BATCH), mesh_of(params)
        return {"test": evaluation.program(step, alone(params), {}, {}, batch, mesh=mesh)}

    return Evaluation("test", every, measure, plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Any) -> Results:
    def end(stage: str) -> float:
        return artefacts[stage].series("test/accuracy")[1][-1]

    rows, values, groups = [], {"accuracy": {}, "gain": {}}, {}
    for data in config.data:
        of = {a: np.array([end(f"{a}_{data}_{s}") for s in range(config.seeds)]) for a in ARMS}
        gain = Effect(*mean_interval(of["taught"] - of["alone"]))
        means = {arm: Effect(*mean_interval(x)) for arm, x in of.items()}
        teacher = end(f"teacher_{data}")
        values["accuracy"][data] = {"teacher": teacher} | {a: x.tolist() for a, x in of.items()}
        values["gain"][data] = gain._asdict()
        groups[data] = {
            "student alone": means["alone"],
            "student taught": means["taught"],
            "teacher": teacher,
        }
        rows.append({"data": data, **groups[data], "gain": gain})
    plot = plots.bars(
        folder / "plots" / "accuracy.png",
        groups,
        y="test accuracy (%)",
        title=f"Students of {config.images} images, {config.seeds} seeds (95 %)",
    )
    return Results(values, [Table("Test accuracy (%), 95 % over seeds", rows)], {"accuracy": plot})


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
