"""Images cut into patches, for models that see them as a sequence, and such models' weights."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from kd_jax.models.common import normals


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """How images are cut; sizes that are fields of a subclass are checked here too."""

    image: int = 32
    """Height and width of the images."""
    patch: int = 4
    """Height and width of a patch."""
    channels: int = 3
    """Channels of the images, C."""

    # GELU as x Phi(x), which published weights take, or in its tanh form; a field of subclasses.
    exact_gelu: ClassVar[bool] = False

    def __post_init__(self):
        if min(size for size in dataclasses.astuple(self) if type(size) is int) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")
        if self.image % self.patch:
            raise ValueError(f"patch: got {self.patch}, takes a divisor of image {self.image}")

    @property
    def patches(self) -> int:
        """Patches of an image, N."""
        return (self.image // self.patch) ** 2

    def gelu(self, x: jax.Array) -> jax.Array:
        """GELU (arXiv 1606.08415), in the form that the config says."""
        return jax.nn.gelu(x, approximate=not self.exact_gelu)

    @property
    def pixels(self) -> int:
        """Numbers of a patch, patch * patch * C."""
        return self.patch**2 * self.channels


def cut(config: PatchConfig, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, N, patch * patch * C], patches and pixels row by row."""
    expected = (config.image, config.image, config.channels)
    if images.shape[1:] != expected:
        raise ValueError(f"inputs: got images {images.shape[1:]}, takes {expected}")
    side, p = config.image // config.patch, config.patch
    x = images.reshape(len(images), side, p, side, p, config.channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), side * side, -1)


def dense(
    key: jax.Array, kernels: Mapping[str, tuple[int, int]], norms: Collection[str], width: int
) -> dict[str, jax.Array]:
    """Leaves by path of linear layers, {path: (in, out)}, and of norms of `width` channels.

    Kernels are normal of variance 1 / in, biases 0, scales 1.
    """
    drawn = {f"{path}/kernel": (shape, shape[0] ** -0.5) for path, shape in kernels.items()}
    vectors = {f"{path}/bias": jnp.zeros(shape[1]) for path, shape in kernels.items()}
    for path in norms:
        vectors |= {f"{path}/scale": jnp.ones(width), f"{path}/bias": jnp.zeros(width)}
    return normals(key, drawn) | vectors
