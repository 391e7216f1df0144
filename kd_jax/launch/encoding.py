"""A training state as the plain arrays that a checkpoint holds, and back again."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

PyTree = Any


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_impl(abstract: Any) -> Any:
    """The kind of a typed key of which only shape and dtype are there."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), abstract)
    return found[0]


def encode(state: PyTree) -> PyTree:
    """The state with typed keys as their data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def abstract_arrays(state: PyTree) -> PyTree:
    """The ShapeDtypeStructs of `encode`'s result; key data replicates."""

    def leaf(x: Any) -> Any:
        if not _is_key(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        data = jax.eval_shape(jax.random.key_data, x)
        whole = NamedSharding(x.sharding.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=whole)

    return jax.tree.map(leaf, state)


def decode(arrays: PyTree, abstract: PyTree) -> PyTree:
    """The state. It passes through jit, because restored arrays may not be donatable as they are,
    and a step would then hold two copies of the state."""

    def wrap(arrays: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x, like: (
                jax.random.wrap_key_data(x, impl=_key_impl(like)) if _is_key(like) else x
            ),
            arrays,
            abstract,
        )

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    with warnings.catch_warnings():
        # Where donation fails there is a second copy for a moment, and no more to say about it.
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        return jax.jit(wrap, out_shardings=shardings, donate_argnums=0)(arrays)


@jax.jit
def fingerprint(state: PyTree) -> tuple[jax.Array, jax.Array]:
    """(u32[leaves], bool): the sum of each leaf's bits mod 2**32, whatever its sharding, which
    tells a checkpoint that was read right; and whether all parameters are finite.
    """
    sums = [_bits(x).sum(dtype=jnp.uint32) for x in jax.tree.leaves(state)]
    floats = [
        jnp.isfinite(x).all()
        for x in jax.tree.leaves(state.params)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(sums), jnp.stack([jnp.bool_(True), *floats]).all()


def _bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if jnp.issubdtype(x.dtype, jnp.floating):
        kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
        x = jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize])
    return x.astype(jnp.uint32)
