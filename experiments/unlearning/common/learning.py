"""How a model is trained in an unlearning run: AdamW for some passes over the data."""

import dataclasses
import math

import optax

from kd_jax import optim
from kd_jax.launch.config import check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """AdamW with linear warm-up and decay."""

    rate: float
    """Peak learning rate."""
    epochs: float
    """Passes over the data."""
    batch_size: int
    """Rows in a batch."""
    warmup: float = 0.1
    """Part of the steps in which the rate rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""

    def __post_init__(self):
        check_positive(self, "rate", "epochs", "batch_size")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: got {self.warmup}, takes 0 to less than 1")

    def steps(self, rows: int) -> int:
        return max(1, math.ceil(self.epochs * rows / self.batch_size))

    def optimizer(self, rows: int) -> optax.GradientTransformation:
        steps = self.steps(rows)
        schedule = optim.linear(self.rate, warmup=int(self.warmup * steps), steps=steps)
        return optim.adamw(schedule, weight_decay=self.weight_decay, clip=1.0)
