"""A new model version that keeps what the old one got right.

Paper: Echterhoff et al. 2024 (MUSCLE, arXiv 2407.09435). A small perceptron, the old version, is
replaced by a larger one. Some images that the old one named rightly are now named wrongly: negative
flips. A third version starts from the new one and learns, on the same training images, from both:
from the old one where it is itself wrong, and from the new one where it is right. Compared are
other masks, the old version alone, and labels. On digits with noise, of which every image is
there several times, and on Fashion-MNIST.

Claim: negative flips become 10 to 40 % fewer without a loss of accuracy; copying the old version
where the learner is wrong is better than where the old one is right, and than everywhere.

    python -m experiments.merging.muscle_flips smoke     # digits, two seeds: 15 s
    python -m experiments.merging.muscle_flips laptop    # digits and Fashion-MNIST: 7 minutes

`laptop` needs Fashion-MNIST (environment KD_JAX_DATA or a download).

Measured at `laptop` (two CPU cores, 2026-11): 18 % fewer negative flips on digits and 25 % on
Fashion-MNIST, for 0.2 and 0.5 points of accuracy. The other masks leave fewer still (36 to 41 %),
but lose 1.0 to 4.0 points; labels alone leave as many as there were.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.merging.parts import flips_report, versions
from experiments.merging.parts.versions import ARMS, SIDES
from kd_jax import optim
from kd_jax.data import shapes, sources
from kd_jax.launch import run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive, not_identity
from kd_jax.launch.stages import Stage, Training
from kd_jax.models import mlp
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.steps import make_train_step
from kd_jax.types import Model, Objective

CLAIMS = flips_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    fashion: bool = False
    """Fashion-MNIST besides digits."""
    folder: str | None = not_identity(None)
    """Where Fashion-MNIST's files lie (by default the environment's KD_JAX_DATA)."""
    split: Literal["test", "validation"] = "test"
    """Images that are measured; settings are chosen on validation, held-out training images."""
    seeds: int = 5
    """Repetitions of all versions."""
    seed: int = 0
    """The first of them."""
    noise: float = 60.0
    """Standard deviation of the noise on digits, in grey levels of 0 to 255."""
    copies: int = 16
    """Noisy copies of each digit."""
    old_widths: tuple[int, ...] = (8,)
    """Hidden layers of the old version."""
    new_widths: tuple[int, ...] = (64,)
    """Hidden layers of the new version."""
    rate: float = 3e-3
    """Peak learning rate of AdamW, of both versions."""
    steps: int = 2000
    """Training steps of both versions."""
    third_rate: float = 1e-3
    """Peak learning rate of the third version."""
    third_steps: int = 1000
    """Training steps of the third version."""
    batch_size: int = 128
    """Images in a batch."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "noise", "copies", "old_widths", "new_widths", "rate", "steps")
        check_positive(self, "third_rate", "third_steps", "batch_size")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")

    @property
    def data(self) -> tuple[str, ...]:
        return ("digits", "fashion_mnist") if self.fashion else ("digits",)

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def model(self, data: str, version: str) -> Model:
        widths = self.old_widths if version == "old" else self.new_widths
        return _model(SIDES[data], widths)


@functools.cache
def _model(side: int, widths: tuple[int, ...]) -> Model:
    return mlp.mlp(mlp.MLPConfig(inputs=side * side, widths=widths, classes=10))


PRESETS = {
    "smoke": Config(seeds=2, copies=2, steps=200, third_steps=100),
    "laptop": Config(fashion=True, seed=10),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found = []
    for data in config.data:
        for seed in config.repetitions:
            names = {version: f"{version}_{data}_{seed}" for version in ("old", "new", *ARMS)}
            found += [
                Stage(
                    names[v],
                    functools.partial(_version, config, data, v, seed),
                    (),
                    _depends(config, data, v, seed),
                )
                for v in ("old", "new")
            ]
            found += [
                Stage(
                    names[arm],
                    functools.partial(_third, config, data, arm, seed),
                    (names["old"], names["new"]),
                    _depends(config, data, arm, seed),
                )
                for arm in ARMS
            ]
    return tuple(found)


def _depends(config: Config, data: str, version: str, seed: int) -> dict[str, Any]:
    """What a version depends on besides its needs; old and new ones on nothing of a third."""
    third = version in ARMS
    rate, steps = (config.third_rate, config.third_steps) if third else (config.rate, config.steps)
    return {
        "data": [data, config.noise, config.copies, config.split],
        "widths": config.old_widths if version == "old" else config.new_widths,
        "learning": [rate, steps, config.batch_size, seed],
    }


def _version(config: Config, data: str, version: str, seed: int, _: Any) -> Training:
    model = config.model(data, version)
    start = weights.from_init(model.init, jax.random.key(seed))
    objective = supervise(model, {"ce": label_cross_entropy})
    return _training(config, data, model, objective, start, config.rate, config.steps, seed)


def _third(
    config: Config, data: str, arm: str, seed: int, artefacts: Mapping[str, Any]
) -> Training:
    old, new = (config.model(data, version) for version in ("old", "new"))
    both = {version: artefacts[f"{version}_{data}_{seed}"].weights() for version in ("old", "new")}
    objective, learning = (
        ARMS[arm].objective(new, old, new),
        (config.third_rate, config.third_steps),
    )
    # Other batches than those that the new version has ended with.
    training = _training(config, data, new, objective, both["new"], *learning, seed + 1000)
    return training._replace(
        frozen=weights.joined(**both), frozen_rules=dict.fromkeys(both, mlp.RULES)
    )


def _training(
    config: Config,
    data: str,
    model: Model,
    objective: Objective,
    start: weights.Weights,
    rate: float,
    steps: int,
    seed: int,
) -> Training:
    schedule = optim.warmup_cosine(rate, warmup=steps // 20, steps=steps)

    def images(split: str) -> dict[str, np.ndarray]:
        return versions.splits(data, config.folder, config.noise, config.copies)[split]

    @functools.cache
    def source() -> sources.Source:
        return sources.array_batches(
            images("train"), seed=seed, name="images", batch_size=config.batch_size
        )

    return Training(
        step=make_train_step(objective, optim.adamw(schedule, weight_decay=1e-4)),
        weights=start,
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.images(config.batch_size, SIDES[data]),
        batch_size=config.batch_size,
        steps=steps,
        rules=mlp.RULES,
        seed=seed,
        evaluations=(
            versions.measured(model, lambda: images(config.split), side=SIDES[data], steps=steps),
        ),
    )


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return flips_report.results(config, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
