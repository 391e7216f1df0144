"""Checks that public losses make once, when traced."""

from typing import Any

import jax


def positive(name: str, value: Any) -> None:
    """ValueError unless a Python number is above 0; traced and array values are not looked at."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name}: got {value}, takes a number above 0")


def not_negative(name: str, value: Any) -> None:
    """ValueError if a Python number is below 0; traced and array values are not looked at."""
    if isinstance(value, int | float) and not value >= 0:
        raise ValueError(f"{name}: got {value}, takes numbers from 0")


def share(name: str, value: Any) -> None:
    """ValueError unless a Python number is in [0, 1]; traced and array values are not looked at."""
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}, takes numbers in [0, 1]")


def same_shape(**arrays: jax.Array) -> None:
    """ValueError unless all arrays have the shape of the first: nothing broadcasts by accident."""
    (first, like), *rest = arrays.items()
    for name, x in rest:
        if x.shape != like.shape:
            raise ValueError(
                f"{name}: got shape {x.shape}, takes the shape of {first}, {like.shape}"
            )


def labels_of(logits: jax.Array, labels: jax.Array) -> None:
    """ValueError unless there is one label for each row of logits [..., V]."""
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: got shape {labels.shape}, takes the leading shape of logits, "
            f"{logits.shape[:-1]}"
        )
