"""Settings that the family's experiments share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.merging.common.tasks import TASKS, Benchmark, digits
from kd_jax.launch.config import Settings, check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfImages(Settings):
    """A model is pretrained on all tasks a little; specialists of one task each go on from it.

    An experiment's config adds the images and the model: `benchmark`, and `architecture`, plain
    data that it depends on.
    """

    tasks: int = 6
    """Specialists: the first so many of turned, mirrored, upside_down, transposed, inverted,
    shuffled."""
    seeds: int = 5
    """Repetitions of everything, pretraining included."""
    seed: int = 0
    """The first of them."""
    pretraining_images: int = 300
    """Images in pretraining, shared out among the tasks."""
    rate: float = 0.05
    """Peak learning rate of SGD with momentum 0.9."""
    steps: int = 300
    """Training steps of the pretrained model and of each specialist."""
    batch_size: int = 64
    """Images in a batch."""

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.tasks <= len(TASKS):
            raise ValueError(f"tasks: got {self.tasks}, takes 2 to {len(TASKS)}")
        check_positive(self, "rate", "steps", "batch_size")
        if self.pretraining_images < self.tasks:
            raise ValueError(f"pretraining_images: got {self.pretraining_images}, takes one a task")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")

    @property
    def benchmark(self) -> Benchmark:
        raise NotImplementedError("an experiment's config says of which images and model")

    @property
    def architecture(self) -> Mapping[str, Any]:
        raise NotImplementedError("an experiment's config says of which images and model")

    @property
    def pretraining(self) -> tuple[float, int]:
        """Rate and steps of the pretrained model; `architecture` says so where they are others."""
        return self.rate, self.steps

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(TASKS)[: self.tasks]

    @property
    def repetitions(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)

    def order(self, seed: int) -> tuple[str, ...]:
        """The tasks begun at another one for each seed: what T says is not what some task says."""
        start = seed % self.tasks
        return self.names[start:] + self.names[:start]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(OfImages):
    """On scikit-learn's digits, by perceptrons."""

    widths: tuple[int, ...] = (256, 256)
    """Hidden layers."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "widths")

    @property
    def benchmark(self) -> Benchmark:
        return digits(self.widths)

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"widths": list(self.widths)}
