"""The config of experiments that compare a few methods after they have forgotten equally much."""

import dataclasses
from typing import Self

from experiments.unlearning.common.config import Common
from experiments.unlearning.common.methods import Name
from kd_jax.launch.config import check_distinct, check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared(Common):
    methods: tuple[Name, ...] = ("ga", "graddiff", "npo_rt", "simnpo")
    """What is compared; the claims are about graddiff, npo_rt and simnpo."""
    simnpo_rate: float = 8.0
    """SimNPO's learning rate in units of unlearn.rate: at the others' it forgets little."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "simnpo_rate")
        check_distinct(self, "methods")

    def of(self, method: Name) -> Self:
        """The config with the method's learning rate."""
        factor = self.simnpo_rate if method == "simnpo" else 1.0
        learning = dataclasses.replace(self.unlearn, rate=factor * self.unlearn.rate)
        return dataclasses.replace(self, unlearn=learning)
