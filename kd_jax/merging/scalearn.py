"""ScaLearn: frozen adapters of several tasks, of whose outputs only the scales are learnt.

The scales are one array omega [L, N, D] for L places, N adapters and width D; axes may be 1:

    [L, N, D]   ScaLearn            a scale for each place, adapter and dimension
    [L, N, 1]   ScaLearnUniform     a number for each place and adapter
    [1, N, D]   ScaLearn++          shared by all places
    [1, N, 1]   ScaLearnUniform++   N numbers in all

Source: Frohmann et al. 2023, arXiv 2310.01217; after released code (CPJKU/ScaLearn).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def init_scales(
    key: jax.Array, shape: tuple[int, int, int], *, scale: float = 2.0, deviation: float = 1e-3
) -> Float[Array, "L N D"]:
    """omega ~ N(scale / N, deviation^2), f32 [L, N, D] with axes of 1 where it is shared.

    With the defaults equal adapters give twice the output of one: the scales are not made to sum
    to 1, and nothing holds them together later.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: got {shape}, takes (L, N, D), with 1 where omega is shared")
    return scale / shape[1] + deviation * jax.random.normal(key, shape, jnp.float32)


def of_places(omega: Float[Array, "_L N D"], places: int) -> Float[Array, "L N D"]:
    """The scales of each of L places, [L, N, D or 1]: shared ones are repeated.

    The gradient of shared scales is the sum over their places. ValueError for another number of
    places than omega has.
    """
    if omega.shape[0] not in (1, places):
        raise ValueError(f"omega: got {omega.shape[0]} places, takes 1 or {places}")
    return jnp.broadcast_to(omega, (places, *omega.shape[1:]))


def scalearn(
    outputs: Float[Array, "*batch N D"],
    omega: Float[Array, "N _D"],
    residual: Float[Array, "*batch D"],
    *,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "*batch D"]:
    """sum_n omega_n * output_n + residual, in the dtype of the residual, summed in float32.

    outputs: of N adapters at one place, without their residual. omega: [N, D], or [N, 1] for a
    number an adapter. Linear in omega and in the outputs.
    dropout: the share of omega's entries that are set to 0, the others divided by 1 - dropout
        (the mean is omega); 0.3 in the paper for vectors. It needs a key, and is left out without
        one: give none in evaluation.
    """
    if omega.shape not in ((outputs.shape[-2], 1), outputs.shape[-2:]):
        n, d = outputs.shape[-2:]
        raise ValueError(f"omega: got shape {omega.shape}, takes ({n}, {d}) or ({n}, 1)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: got {dropout}, takes a number in [0, 1)")
    omega = jnp.asarray(omega, jnp.float32)
    if key is not None and dropout > 0:
        kept = jax.random.bernoulli(key, 1 - dropout, omega.shape)
        omega = jnp.where(kept, omega / (1 - dropout), 0.0)
    omega = jnp.broadcast_to(omega, outputs.shape[-2:])
    added = jnp.einsum("...nd,nd->...d", outputs.astype(jnp.float32), omega)
    return (added + residual.astype(jnp.float32)).astype(residual.dtype)
