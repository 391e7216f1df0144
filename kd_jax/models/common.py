"""What the vision models share: inputs, initialisers, linear layers, norms, taps and places."""

import zlib
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from kd_jax.models.parts import matmul


def to_float(images: jax.Array) -> jax.Array:
    """f32 images [B, H, W, C]: u8 is scaled by 1/255, floating numbers are taken as they are."""
    if images.ndim != 4:
        raise ValueError(f"inputs: got shape {images.shape}, takes images [B, H, W, C]")
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"inputs: got {images.dtype}, takes uint8 or floating")
    return images.astype(jnp.float32)


def normals(
    key: jax.Array, leaves: Mapping[str, tuple[tuple[int, ...], float]]
) -> dict[str, jax.Array]:
    """{path: std * N(0, 1) of the shape, f32} for {path: (shape, std)}.

    A leaf depends on the key, its path and its shape only, so that a model keeps the weights of
    the parts it shares with another. Leaves of one shape are drawn at once: the generator compiles
    slowly, and once for each shape.
    """
    shapes: dict[tuple[int, ...], list[str]] = {}
    for path, (shape, _) in leaves.items():
        shapes.setdefault(shape, []).append(path)
    made = {}
    for shape, paths in shapes.items():
        names = jnp.array([zlib.crc32(path.encode()) for path in paths], jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, names)
        drawn = jax.vmap(lambda k, shape=shape: jax.random.normal(k, shape, jnp.float32))(keys)
        made |= {path: leaves[path][1] * x for path, x in zip(paths, drawn, strict=True)}
    return made


def along_last(v: jax.Array, x: jax.Array) -> jax.Array:
    """v [D] in the dtype of x [..., D] with axes of 1 before it."""
    return v.astype(x.dtype).reshape((1,) * (x.ndim - 1) + v.shape)


def linear(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """x @ kernel + bias: [..., M] -> [..., N]."""
    return matmul(x, params["kernel"]) + along_last(params["bias"], x)


def layer_norm(params: Mapping[str, jax.Array], x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis (arXiv 1607.06450)."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    normed = (x - mean) * jax.lax.rsqrt(var + eps)
    return normed * along_last(params["scale"], x) + along_last(params["bias"], x)


class Places:
    """The named places of one forward pass: call it as x = place(name, x) at each of them.

    It adds add[name] to x where given, and keeps x (with what was added) in `found` where asked
    for in taps. ValueError for a name that the model does not have, and for a perturbation that
    does not fit.
    """

    def __init__(self, names: Collection[str], taps: Collection[str], add: Mapping[str, jax.Array]):
        for argument, given in (("taps", taps), ("add", add)):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ValueError(f"{argument}: got {', '.join(unknown)}, takes {', '.join(names)}")
        self._taps, self._add = taps, add
        self.found: dict[str, jax.Array] = {}

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        if name in self._add:
            more = self._add[name]
            if more.shape != x.shape:
                raise ValueError(f"add: got shape {more.shape} at {name}, takes {x.shape}")
            x = x + more.astype(x.dtype)
        if name in self._taps:
            self.found[name] = x
        return x
