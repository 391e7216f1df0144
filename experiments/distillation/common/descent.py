"""How an image classifier is trained in the tables of papers: SGD whose rate falls by steps."""

import dataclasses

import optax

from kd_jax import optim
from kd_jax.launch.config import check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent:
    """SGD with momentum; the rate is multiplied by `factor` at given epochs."""

    rate: float
    """Learning rate before it falls."""
    epochs: int
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a batch."""
    decays: tuple[int, ...] = ()
    """Epochs after which the rate falls."""
    factor: float = 0.1
    """What it is multiplied by."""
    warm_up: int = 0
    """Epochs in which the rate rises from 0, step by step."""
    momentum: float = 0.9
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Nesterov's form of it."""
    weight_decay: float = 5e-4
    """Added to the gradient, times the weights."""
    decay_vectors: bool = True
    """Also for biases and the norms' scales, as PyTorch's SGD has it; timm leaves them out."""

    def __post_init__(self):
        check_positive(self, "rate", "epochs", "batch_size", "decays", "factor")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: got {self.momentum}, takes numbers from 0, below 1")
        for name in ("weight_decay", "warm_up"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes numbers from 0")
        if list(self.decays) != sorted(set(self.decays)) or max(self.decays, default=0) >= (
            self.epochs
        ):
            raise ValueError(
                f"decays: got {self.decays}, takes rising epochs below {self.epochs}, the last"
            )
        if self.warm_up >= min((*self.decays, self.epochs)):
            raise ValueError(f"warm_up: got {self.warm_up}, takes fewer epochs than the first part")

    def steps(self, images: int, epochs: int | None = None) -> int:
        """Of a training on so many images, or of its first epochs; at least 1."""
        epochs = self.epochs if epochs is None else epochs
        return max(1, round(epochs * images / self.batch_size))

    def schedule(self, images: int) -> optax.Schedule:
        """int32 step -> learning rate."""
        falls = {self.steps(images, epoch): self.factor for epoch in self.decays}
        stepped = optax.piecewise_constant_schedule(self.rate, falls)
        if not self.warm_up:
            return stepped
        rise = self.steps(images, self.warm_up)
        return lambda step: stepped(step) * optax.linear_schedule(0.0, 1.0, rise)(step)

    def optimizer(self, images: int) -> optax.GradientTransformation:
        return optim.sgd(
            self.schedule(images),
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            undecayed=(lambda _: False) if self.decay_vectors else optim.UNDECAYED,
        )
