"""A teacher whose outputs come with the batch: as a model, so that every part of `distil` takes it.

    distil(student, stored_teacher(), parts, teacher_policy=nothing)

is `distil` with the teacher that `launch.output_cache` ran before.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax

from kd_jax.types import Frozen, Logits, Model, ModelOutput, Params

PyTree = Any


def stored_teacher() -> Model:
    """apply reads inputs["teacher_logits"] [B, C] and, for each tap, inputs["teacher_<tap>"].

    It has no parameters. ValueError, when traced, names the columns that the batch lacks.
    """

    def apply(
        params: PyTree,
        inputs: Mapping[str, jax.Array],
        *,
        state: PyTree = {},
        key: jax.Array | None = None,
        train: bool = False,
        taps: Collection[str] = (),
        add: Mapping[str, jax.Array] = {},
    ) -> ModelOutput:
        if add:
            raise ValueError(f"add: got {', '.join(add)}; stored outputs cannot be changed")
        missing = [name for name in columns_of(taps) if name not in inputs]
        if missing:
            raise ValueError(
                f"batch: got {', '.join(sorted(inputs))}, takes {', '.join(missing)} besides"
            )
        found = {name: inputs[f"teacher_{name}"] for name in taps}
        return ModelOutput(Logits(inputs["teacher_logits"]), found)

    return Model(lambda key: {}, apply)


def columns_of(taps: Collection[str]) -> tuple[str, ...]:
    """The batch's columns that hold logits and taps."""
    return ("teacher_logits", *(f"teacher_{name}" for name in taps))


def nothing(params: Params, frozen: Frozen) -> PyTree:
    """The weights of a model that has none."""
    return {}
