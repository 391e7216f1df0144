"""A multilayer perceptron for classification: the smallest model that everything runs on."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.common import Places, linear, normals, to_float
from kd_jax.models.parts import fetched
from kd_jax.types import Logits, Model, ModelOutput

PyTree = Any

# Small enough to stand whole on every device, and of widths that a mesh need not divide.
RULES = ((r"layer_\d+/kernel", (None, None)), (r"layer_\d+/bias", (None,)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Sizes of a perceptron with ReLU between its layers."""

    inputs: int
    """Numbers in an example, all axes but the batch's multiplied."""
    widths: tuple[int, ...]
    """Hidden layers, from the input on."""
    classes: int
    """Logits, C."""

    def __post_init__(self):
        if min(self.inputs, self.classes, *self.widths) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")


def mlp(config: MLPConfig) -> Model:
    """Flatten, then Linear and ReLU for each width, then Linear to the classes.

    init(key): {"layer_i": {"kernel" [in, out], "bias" [out]}}; kernels normal of variance
        2 / in (He et al. 2015), biases 0; the last layer is the head. A leaf depends on key,
        its name and its shape only.
    apply: inputs["inputs"] [B, H, W, C], u8 (scaled by 1/255) or floating. taps and add name the
        hidden layers after their ReLU, "hidden_0" on, [B, width], and the flat "inputs".
    """
    sizes = (config.inputs, *config.widths, config.classes)
    places = ("inputs", *(f"hidden_{i}" for i in range(len(config.widths))))

    def init(key: jax.Array) -> PyTree:
        kernels = {
            f"layer_{i}": ((fan_in, fan_out), math.sqrt(2 / fan_in))
            for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        }
        return {
            name: {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}
            for name, kernel in normals(key, kernels).items()
        }

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
        place = Places(places, taps, add)
        x = to_float(inputs["inputs"])
        x = x.reshape(x.shape[0], -1)
        for i, name in enumerate(places):
            x = linear(fetched(params[f"layer_{i}"]), place(name, x))
            x = x if i == len(config.widths) else jax.nn.relu(x)
        return ModelOutput(Logits(x), place.found, state)

    return Model(init, apply)
