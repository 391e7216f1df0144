"""Move knowledge between models (distil, unlearn, align, merge) with pure JAX functions.

The types and the step builders are re-exported here; everything else is imported from where it
stands: `from kd_jax.losses import unlearning`. Importing this package starts no backend.
"""

from kd_jax.steps import (
    guard_non_finite,
    make_eval_step,
    make_train_step,
    sequence,
    with_ema,
)
from kd_jax.types import (
    Context,
    Factored,
    GradientRule,
    Logits,
    Model,
    ModelOutput,
    Objective,
    Output,
    Term,
    TrainState,
    TrainStep,
    keep,
    weighted_sum,
)

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Factored",
    "GradientRule",
    "Logits",
    "Model",
    "ModelOutput",
    "Objective",
    "Output",
    "Term",
    "TrainState",
    "TrainStep",
    "guard_non_finite",
    "keep",
    "make_eval_step",
    "make_train_step",
    "sequence",
    "weighted_sum",
    "with_ema",
]
