"""Settings and sizes that the family's language experiments share."""

import dataclasses

from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import CHARACTERS, Text
from kd_jax.launch.config import Settings, check_positive
from kd_jax.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Settings):
    """A teacher learns a text, then students learn from it."""

    text: Text = dataclasses.field(default_factory=Text)
    teacher: DecoderConfig
    student: DecoderConfig
    learn_teacher: Learning
    learn: Learning
    """How a student learns."""
    seeds: int = 3
    """Students of each kind; seed s fixes initial weights and the order of rows."""
    seed: int = 0
    """The first of them."""
    prompt: int = 16
    """Characters of a held-out row that a student goes on from."""
    evaluations: int = 4
    """How often a student is measured."""
    score_batch: int = 64
    """Rows measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "seeds", "prompt", "evaluations", "score_batch")
        if self.prompt > self.text.length:
            raise ValueError(
                f"prompt: got {self.prompt}, takes up to text.length, {self.text.length}"
            )

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


SMALL = DecoderConfig(
    vocab=len(CHARACTERS), width=32, depth=1, heads=2, kv_heads=2, head_dim=16, mlp=64,
    tied=True, scan=False, remat=False,
)  # fmt: skip

# Of `laptop`: a teacher with more than its student can hold.
TEACHER = dataclasses.replace(SMALL, width=96, depth=2, heads=3, kv_heads=3, head_dim=32, mlp=288)
STUDENT = dataclasses.replace(SMALL, width=48, heads=2, kv_heads=2, head_dim=24, mlp=96)
