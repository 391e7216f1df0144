"""Gram matrices of the inputs of linear layers, by a pass of data."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from kd_jax.attribution.means import Statistic
from kd_jax.types import Batch, Frozen, Params

Features = Callable[[Params, Frozen, Batch], Mapping[str, jax.Array | Sequence[jax.Array]]]


def gram_matrices(features: Features) -> Statistic:
    """The statistic x x^T of the inputs x of linear layers, {path of a kernel: f32 [in, in]}.

    Its mean over examples (`means.mean_over_examples`) is X^T X / n with the weights of the batch:
    what `merging.regmean` takes, one mapping a model.

    features(params, frozen, batch) -> {path of a kernel: its inputs [B, ..., in]}, from the model's
        taps. batch["weights"] are of the leading axes: [B], or [B, T] for tokens; other axes
        (places of an image) count alike, and are summed. Of stacked layers a sequence of inputs,
        one a layer, whose Gram matrices are stacked alike, [L, in, in]. Of a decoder:

    names = kernel_inputs.taps(config)
    taps = model.apply(params["model"], batch, taps=set(jax.tree.leaves(names))).taps
    features = jax.tree.map(taps.get, names)
    """

    def statistic(
        params: Params, frozen: Frozen, batch: Batch, keys: jax.Array
    ) -> dict[str, jax.Array]:
        weights = batch["weights"].astype(jnp.float32)

        def gram(path: str, x: jax.Array) -> jax.Array:
            if x.shape[: weights.ndim] != weights.shape or x.ndim <= weights.ndim:
                raise ValueError(
                    f"features: {path} has shape {x.shape}, takes {weights.shape} as of the "
                    "weights, and the inputs"
                )
            w = weights.reshape(weights.shape + (1,) * (x.ndim - weights.ndim))
            x = jnp.where(w == 0, 0.0, x.astype(jnp.float32))
            rows = list(range(x.ndim - 1))
            return jnp.tensordot(w * x, x, (rows, rows), precision="highest")

        def grams(path: str, x: jax.Array | Sequence[jax.Array]) -> jax.Array:
            if isinstance(x, Sequence):
                return jnp.stack([gram(path, one) for one in x])
            return gram(path, x)

        return {path: grams(path, x) for path, x in features(params, frozen, batch).items()}

    return statistic
