"""Merging vision transformers: specialists of tasks, and soups of one task's fine-tunings.

Papers: model soups (arXiv 2203.05482), model stock (2403.19522), TIES (2306.01708) and the others
of digits_merge, on a second data set. A small vision transformer is pretrained on some images of
Fashion-MNIST changed in several ways. Specialists of one task each go on from it, head frozen, and
are merged by every method of digits_merge that does without data. And a sweep of eight fine-tunings
for one task, four rates with two orders of images, is averaged: all of them, those of the greedy
soup, and two of one rate by model stock, on clean test images and on noisy ones; so are two models
that come from different initial weights.

Claim: averages of one start are as good as the best of a sweep, averages of several are useless.

    python -m experiments.merging.fashion_merge smoke     # generated images, two tasks: 12 s
    python -m experiments.merging.fashion_merge laptop    # Fashion-MNIST, four tasks: 5 minutes

`laptop` needs Fashion-MNIST (environment KD_JAX_DATA, --folder or a download).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.merging.common import specialists
from experiments.merging.common.config import OfImages
from experiments.merging.common.tasks import Benchmark, Sample, changed, examples, fashion
from experiments.merging.parts import fashion_report, measures, soups
from experiments.merging.parts.methods import Sizes
from kd_jax.launch import run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive, identity, not_identity
from kd_jax.launch.stages import Compute, Stage, Training
from kd_jax.models.vit import ViTConfig

CLAIMS = fashion_report.CLAIMS
SIZES = Sizes(trim=0.2, density=0.3, epsilon=0.15, keep=0.15, remove=0.006)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OfImages):
    fashion: bool = False
    """Fashion-MNIST instead of generated images."""
    folder: str | None = not_identity(None)
    """Where Fashion-MNIST's files lie (by default the environment's KD_JAX_DATA)."""
    images: int = 8000
    """Training images."""
    validation: int = 256
    """Validation images, the next training images."""
    test: int = 1000
    """Test images."""
    pretraining_rate: float = 0.05
    """Peak learning rate of the pretrained model."""
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Factors of the rate in a sweep of fine-tunings; 1 is one of them."""
    orders: int = 2
    """Orders of images that each of them has; model stock takes those of factor 1."""
    noise: float = 0.2
    """Standard deviation of the noise on test images, as a part of the range of pixels."""
    vit: ViTConfig = dataclasses.field(
        default_factory=lambda: ViTConfig(
            image=28, patch=14, channels=1, width=128, depth=2, heads=2, mlp=256
        )
    )
    """The model."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "images", "validation", "test", "pretraining_rate", "noise")
        check_positive(self, "factors")
        check_distinct(self, "factors")
        if 1.0 not in self.factors:
            raise ValueError(f"factors: got {self.factors}, takes 1 among them")
        if self.orders < 2:
            raise ValueError(f"orders: got {self.orders}, takes at least 2: model stock has two")
        if (self.vit.image, self.vit.channels) != (28, 1):
            raise ValueError(f"vit: got {self.vit}, takes images of 28 and 1 channel")

    @property
    def benchmark(self) -> Benchmark:
        sample = Sample(self.images, self.validation, self.test, not self.fashion, self.folder)
        return fashion(self.vit, sample)

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {
            "vit": identity(self.vit),
            "images": [self.fashion, self.images],
            "pretraining_rate": self.pretraining_rate,
        }

    @property
    def sweep(self) -> dict[str, soups.Member]:
        return soups.members(self.factors, self.orders)

    @property
    def pretraining(self) -> tuple[float, int]:
        return self.pretraining_rate, self.steps


PRESETS = {
    "smoke": Config(
        tasks=2,
        seeds=2,
        steps=20,
        images=600,
        validation=64,
        test=64,
        factors=(1.0,),
        vit=ViTConfig(image=28, patch=14, channels=1, width=16, depth=1, heads=1, mlp=16),
    ),
    # So few images that the order in which they come matters: averaging has something to even out.
    "laptop": Config(
        fashion=True,
        tasks=4,
        seeds=4,
        images=2000,
        pretraining_images=1200,
        rate=0.03,
        steps=400,
        factors=(0.5, 0.75, 1.0, 1.5),
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    task = config.names[0]
    found = [*specialists.stages(config)]
    for seed in config.repetitions:
        base = f"pretrained_{seed}"
        sweep = {f"{name}_{seed}": member for name, member in config.sweep.items()}
        found += [
            Stage(
                name,
                functools.partial(_member, config, seed, *member),
                (base,),
                specialists.learning(config, seed) | {"task": task, "member": list(member)},
            )
            for name, member in sweep.items()
        ]
        after = config.seed + (seed - config.seed + 1) % config.seeds
        apart = [f"{name}_{s}" for s in (seed, after) for name in ("pretrained", task)]
        found.append(
            Stage(
                f"soups_{seed}",
                functools.partial(_soups, config, seed, after),
                tuple(dict.fromkeys((base, *sweep, *apart))),
            )
        )
    counts = range(config.tasks, config.tasks + 1)
    merged = functools.partial(measures.merged, config.benchmark, counts, SIZES)
    return (*found, *specialists.merging(config, "merged", merged))


def _member(
    config: Config, seed: int, factor: float, order: int, artefacts: Mapping[str, Any]
) -> Training:
    train = functools.partial(changed, config.benchmark, config.names[0], "train")
    start = artefacts[f"pretrained_{seed}"].weights()
    rate = factor * config.rate
    return specialists.training(config, start, train, 1000 * order + seed, trunk=True, rate=rate)


def _soups(config: Config, seed: int, after: int, artefacts: Mapping[str, Artefact]) -> Compute:
    benchmark, task = config.benchmark, config.names[0]

    def compute() -> tuple[None, Mapping[str, Any]]:
        def read(name: str) -> tuple[Any, Any]:
            return specialists.trunk_and_head(config, artefacts[name])

        base, head = read(f"pretrained_{seed}")
        sweep = {x: read(f"{name}_{seed}")[0] for name, x in config.sweep.items()}
        others = [read(f"{task}_{s}") for s in (seed, after)]
        validation, test = (examples(benchmark, [task], s) for s in ("validation", "test"))
        sets = soups.Sets(validation, test, soups.noisy(test, config.noise))
        return None, soups.measured(benchmark, head, base, sweep, others, sets)

    return Compute(compute, plan=functools.partial(specialists.plan, config, seed, artefacts))


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    orders = {seed: config.order(seed) for seed in config.repetitions}
    return fashion_report.results(config.names, orders, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
