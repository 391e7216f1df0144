"""What convolutional classifiers share: an outline of their layers, and the model made from it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.axes import named
from kd_jax.convolution import Convolve, depthwise, direct
from kd_jax.models.common import Places, along_last, linear, normals, to_float
from kd_jax.models.lora import merge
from kd_jax.models.norms import Norm
from kd_jax.models.parts import fetched
from kd_jax.trees import check_same, nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree

RULES = (
    (r"head/kernel", ("embed", "classes")),
    (r"head/bias", ("classes",)),
    (r"(.*/)?(\w+_)?norm(_\d)?/(scale|bias)", (None,)),
    (r".*/kernel", (None, None, None, "embed")),
)
# Too small to be worth splitting.
DEPTHWISE_RULES = ((r".*depthwise/kernel", (None, None, None, None)), *RULES)


class Conv(NamedTuple):
    """A square convolution without bias, padded by side // 2 on every side.

    depthwise: every channel by itself, kernel [side, side, 1, outputs]; inputs is outputs then.
    """

    side: int
    inputs: int
    outputs: int
    stride: int = 1
    depthwise: bool = False


class Outline(NamedTuple):
    """The layers of a classifier by path: convolutions, norms with their channels, classes.

    head: (channels of the pooled image, classes).
    """

    convs: Mapping[str, Conv]
    norms: Mapping[str, int]
    head: tuple[int, int]


class Layers:
    """The layers of one forward pass, called by path; `moved` collects the norms' new state."""

    def __init__(
        self,
        outline: Outline,
        params: PyTree,
        state: PyTree,
        norm: Norm,
        train: bool,
        convolve: Convolve,
    ) -> None:
        self._outline, self._params, self._state = outline, params, state
        self._norm, self._train, self._convolve = norm, train, convolve
        self.moved: dict[str, jax.Array] = {}

    def conv(self, path: str, x: jax.Array) -> jax.Array:
        """The convolution at the path."""
        conv = self._outline.convs[path]
        kernel = merge(_at(self._params, path)["kernel"]).astype(x.dtype)
        if conv.depthwise:
            return depthwise(x, kernel, conv.stride)
        return self._convolve(x, kernel, conv.stride)

    def norm(self, path: str, x: jax.Array) -> jax.Array:
        """The norm at the path, its scale and its bias."""
        held = _at(self._state, path) if self._state else {}
        x, new = self._norm.apply(x, held, self._train)
        self.moved.update({f"{path}/{name}": value for name, value in new.items()})
        own = _at(self._params, path)
        return x * along_last(own["scale"], x) + along_last(own["bias"], x)

    def __call__(self, path: str, x: jax.Array) -> jax.Array:
        """The convolution at the path and its norm, at the path with "_norm"."""
        return self.norm(f"{path}_norm", self.conv(path, x))


# (layers, images f32 [B, H, W, C], place) -> what is pooled, [B, H', W', D]
Body = Callable[[Layers, jax.Array, Places], jax.Array]


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum over 3 x 3 places with stride 2, padded by 1: [B, H, W, C] -> half of both."""
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)


def normed(convs: Mapping[str, Conv], head: tuple[int, int]) -> Outline:
    """The outline in which every convolution has a norm, at its path with "_norm"."""
    return Outline(convs, {f"{path}_norm": conv.outputs for path, conv in convs.items()}, head)


def stage_ends(blocks: Collection[int]) -> tuple[str, ...]:
    """The names of each stage's last block, the usual taps: (3, 3) -> ("block_2", "block_5")."""
    ends, total = [], 0
    for count in blocks:
        total += count
        ends.append(f"block_{total - 1}")
    return tuple(ends)


def classifier(
    outline: Outline,
    places: Collection[str],
    body: Body,
    norm: Norm,
    convolve: Convolve = direct,
) -> Model:
    """The model whose body is pooled to its mean over the image ("pooled") for a linear head.

    init(key): kernels [k, k, in, out] normal of variance 2 / (k k in) (arXiv 1502.01852), in being
        1 for depthwise ones; the head's of variance 1 / in; norms 1 and 0.
    places: names of taps, "pooled" added. convolve: of all channels; or `convolution.as_product`.
    """
    width, classes = outline.head

    def init(key: jax.Array) -> PyTree:
        kernels: dict[str, tuple[tuple[int, ...], float]] = {
            "head/kernel": ((width, classes), width**-0.5)
        }
        for path, conv in outline.convs.items():
            shape = (conv.side, conv.side, 1 if conv.depthwise else conv.inputs, conv.outputs)
            kernels[f"{path}/kernel"] = (shape, (2.0 / (shape[0] * shape[1] * shape[2])) ** 0.5)
        vectors = {"head/bias": jnp.zeros(classes)}
        for path, channels in outline.norms.items():
            vectors |= {f"{path}/scale": jnp.ones(channels), f"{path}/bias": jnp.zeros(channels)}
        return nest(normals(key, kernels) | vectors)

    def initial_state() -> PyTree:
        return nest(
            {
                f"{path}/{name}": value
                for path, channels in outline.norms.items()
                for name, value in norm.state(channels).items()
            }
        )

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
        params = fetched(params)
        check_same("state", state, "model.state()", jax.eval_shape(initial_state))
        place = Places((*places, "pooled"), taps, add)
        layers = Layers(outline, params, state, norm, train, convolve)
        images = named(to_float(inputs["inputs"]), "batch", None, None, None)
        x = place("pooled", body(layers, images, place).mean((1, 2)))
        return ModelOutput(Logits(linear(params["head"], x)), place.found, nest(layers.moved))

    return Model(init, apply, initial_state)


def _at(tree: PyTree, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
