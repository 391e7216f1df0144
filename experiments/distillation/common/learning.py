"""How a language model is trained from scratch in a distillation run."""

import dataclasses

import optax

from kd_jax import optim
from kd_jax.launch.config import check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """AdamW with linear warm-up and a cosine to 0."""

    rate: float
    """Peak learning rate."""
    steps: int
    """Training steps."""
    batch_size: int = 32
    """Rows in a batch."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""

    def __post_init__(self):
        check_positive(self, "rate", "steps", "batch_size")

    def optimizer(self) -> optax.GradientTransformation:
        schedule = optim.warmup_cosine(self.rate, warmup=self.steps // 20, steps=self.steps)
        return optim.adamw(schedule, weight_decay=self.weight_decay, clip=1.0)
