"""Move knowledge between models (distil, unlearn, align, merge) with pure JAX functions.

The types and the step builders are re-exported here; everything else is imported from where it
stands: `from kd_jax.losses import unlearning`. Importing this package starts no backend, and loads
no JAX until one of these names is asked for: the merge of files needs none.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_FROM_STEPS = {"guard_non_finite", "make_eval_step", "make_train_step", "sequence", "with_ema"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kd_jax' has no attribute {name!r}")
    home = "kd_jax.steps" if name in _FROM_STEPS else "kd_jax.types"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
