"""A residual perceptron: blocks that all map the same stream, so that they can be moved about."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp

from kd_jax.models.common import Places, layer_norm, linear, normals, to_float
from kd_jax.models.parts import fetched
from kd_jax.trees import flatten, nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree

# As small as `mlp`: whole on every device.
RULES = (
    (r"(stem|head)/kernel", (None, None)),
    (r"(stem|head)/bias", (None,)),
    (r"final_norm/(scale|bias)", (None,)),
    (r"blocks/(up|down)/kernel", (None, None, None)),
    (r"blocks/(norm/(scale|bias)|(up|down)/bias)", (None, None)),
)

# (parameters of one block's place, stream [B, D], key or None) -> stream [B, D]
After = Callable[[PyTree, jax.Array, jax.Array | None], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualMLPConfig:
    """Sizes of a residual perceptron."""

    inputs: int
    """Numbers in an example, all axes but the batch's multiplied."""
    width: int
    """Width of the residual stream, D."""
    depth: int
    """Blocks, L."""
    hidden: int
    """Width inside the blocks."""
    classes: int
    """Logits, C."""

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes: got {self}, takes at least 1 of each")


def residual_mlp(config: ResidualMLPConfig, after: After | None = None) -> Model:
    """Linear to the stream, L blocks x + down(relu(up(norm(x)))), norm, linear to the classes.

    init(key): {"stem", "blocks": {"norm", "up", "down"} with leaves [L, ...], "final_norm",
        "head"}; kernels [in, out] normal of variance 2 / in (stem, up) and 1 / in (down, head),
        biases 0. A leaf depends on key, its name and its shape only.
    after: what is done to the stream behind each block (an adapter), with the block's part of
        params["after"], leaves [L, ...], which init does not make, and a key of its own.
        ValueError for leaves of another L.
    apply: inputs["inputs"] [B, H, W, C], u8 (scaled by 1/255) or floating. taps and add: "stem" and
        "block_0" on, behind `after`, [B, D].
    """
    names = [f"block_{i}" for i in range(config.depth)]

    def init(key: jax.Array) -> PyTree:
        d = config.width
        kernels = {"stem": (config.inputs, d), "head": (d, config.classes)}
        gains = {"stem": 2.0, "head": 1.0}
        for name in names:
            kernels |= {f"{name}/up": (d, config.hidden), f"{name}/down": (config.hidden, d)}
            gains |= {f"{name}/up": 2.0, f"{name}/down": 1.0}
        drawn = {p: (shape, math.sqrt(gains[p] / shape[0])) for p, shape in kernels.items()}
        tree = nest(
            {f"{p}/kernel": x for p, x in normals(key, drawn).items()}
            | {f"{p}/bias": jnp.zeros(shape[1]) for p, shape in kernels.items()}
        )
        norm = {"scale": jnp.ones(d), "bias": jnp.zeros(d)}
        blocks = [{"norm": norm, **tree.pop(name)} for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        return {**tree, "blocks": stacked, "final_norm": norm}

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
        place = Places(("stem", *names), taps, add)
        if after is not None:
            _check_leading(params["after"], config.depth)
        x = place("stem", stem(params, inputs["inputs"]))
        for i, name in enumerate(names):
            x = block(fetched(_at(params["blocks"], i)), x)
            if after is not None:
                own = jax.random.fold_in(key, i) if train and key is not None else None
                x = after(_at(params["after"], i), x, own)
            x = place(name, x)
        return ModelOutput(Logits(readout(params, x)), place.found, state)

    return Model(init, apply)


def _check_leading(tree: PyTree, depth: int) -> None:
    # A leaf that is too short would not fail: an index beyond it reads its last entry.
    wrong = {path: x.shape for path, x in flatten(tree).items() if x.shape[:1] != (depth,)}
    if wrong:
        raise ValueError(f"after: got {wrong}, takes one entry for each of the {depth} blocks")


def _at(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x[i], tree)


def stem(params: PyTree, images: jax.Array) -> jax.Array:
    """The stream [B, D] of images [B, H, W, C] before the first block."""
    x = to_float(images)
    return linear(fetched(params["stem"]), x.reshape(x.shape[0], -1))


def block(params: PyTree, x: jax.Array) -> jax.Array:
    """x + down(relu(up(norm(x)))): [B, D] -> [B, D]; params: of one block, without L."""
    hidden = jax.nn.relu(linear(params["up"], layer_norm(params["norm"], x)))
    return x + linear(params["down"], hidden)


def readout(params: PyTree, x: jax.Array) -> jax.Array:
    """Logits [B, C] of the stream [B, D] behind the last block."""
    return linear(fetched(params["head"]), layer_norm(fetched(params["final_norm"]), x))
