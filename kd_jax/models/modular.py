"""Models made of stages that can be exchanged one by one, and hybrids of two such models.

    meta = [dense(784, (32,)), dense(32, (32,)), dense(32, (32,)), linear_head(32, 10)]
    wide = stitched(dense(256, (256,)), inputs=(32, 256), outputs=(256, 32))
    hybrid(meta, wide, 1)

Module-to-module distillation (Lo et al. 2024, arXiv 2402.16918, by released code): a large model's
modules and a modular student's are each put into one slot of a small model of as many stages, the
meta model, and one hybrid is distilled into the other (`objectives.transfer.hybrids`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.models.common import Places, layer_norm, linear, normals
from kd_jax.models.moe import moe_mlp
from kd_jax.models.parts import fetched
from kd_jax.trees import nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree


class Stage(NamedTuple):
    """A part of a model as pure functions: init(key) -> params; apply(params, x [B, ...]) -> x."""

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]


def modular(stages: Sequence[Stage]) -> Model:
    """The stages one after the other: the first takes the images, the last gives the logits.

    init(key): {"stage_i": a stage's own}. taps and add: "stage_i", what a stage gives. inputs are
    u8 (scaled by 1/255) or floating, of any shape [B, ...].
    """
    if not stages:
        raise ValueError("stages: got none, takes at least one")
    named = {f"stage_{i}": stage for i, stage in enumerate(stages)}

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
        place, x = Places(tuple(named), taps, add), inputs["inputs"]
        x = x.astype(jnp.float32) / (255.0 if x.dtype == jnp.uint8 else 1.0)
        for name, stage in named.items():
            x = place(name, stage.apply(fetched(params[name]), x))
        return ModelOutput(Logits(x), place.found, state)

    return Model(lambda key: _made(key, named), apply)


def hybrid(meta: Sequence[Stage], module: Stage, slot: int) -> Model:
    """The meta model with its stage `slot` replaced by a module.

    Weights: {"meta": those of `modular(meta)`, of which the slot's are not read, "module"}. In slot
    0 the module takes the raw inputs, in the last it gives the logits: nothing of the meta model
    stands before or after it there. Taps as in `modular`. Gradients pass through the meta model's
    upper stages to the module; that it is frozen is the policy's matter.
    """
    if not 0 <= slot < len(meta):
        raise ValueError(f"slot: got {slot}, takes 0 to {len(meta) - 1}")
    together = modular([module if i == slot else stage for i, stage in enumerate(meta)])

    def init(key: jax.Array) -> PyTree:
        below, own = jax.random.split(key)
        return {"meta": modular(meta).init(below), "module": module.init(own)}

    def apply(params: PyTree, inputs: Mapping[str, jax.Array], **given) -> ModelOutput:
        weights = {**params["meta"], f"stage_{slot}": params["module"]}
        return together.apply(weights, inputs, **given)

    return Model(init, apply)


def stitched(
    module: Stage, *, inputs: tuple[int, int] | None, outputs: tuple[int, int] | None
) -> Stage:
    """The module between two linear maps, (from, to) widths each, where a width has to change.

    Weights: {"in", "module", "out"}, less what is None. The first slot has no map before it, the
    last none after it.
    """
    maps = {n: sizes for n, sizes in (("in", inputs), ("out", outputs)) if sizes is not None}

    def init(key: jax.Array) -> PyTree:
        own, below = jax.random.split(key)
        return {"module": module.init(own)} | _make_linears(below, maps)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = linear(params["in"], x) if inputs is not None else x
        x = module.apply(params["module"], x)
        return linear(params["out"], x) if outputs is not None else x

    return Stage(init, apply)


def dense(inputs: int, widths: Sequence[int]) -> Stage:
    """Flattened, then linear and ReLU for each width: [B, ...] -> [B, widths[-1]]."""
    sizes = (inputs, *widths)
    maps = {f"layer_{i}": pair for i, pair in enumerate(zip(sizes[:-1], sizes[1:], strict=True))}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for name in maps:
            x = jax.nn.relu(linear(params[name], x))
        return x

    return Stage(lambda key: _make_linears(key, maps, gain=2.0), apply)


def linear_head(inputs: int, classes: int) -> Stage:
    """Logits of vectors: [B, inputs] -> [B, classes]."""
    maps = {"head": (inputs, classes)}
    return Stage(lambda key: _make_linears(key, maps), lambda params, x: linear(params["head"], x))


def routed(width: int, hidden: int, *, experts: int = 4, per_token: int = 1) -> Stage:
    """x + moe_mlp(norm(x)) of vectors [B, width]: each example goes through its best experts.

    Weights of the experts are not renormalised (`moe.route`): with one expert an example, its
    probability is what trains the router. No loss balances the experts.
    """

    def init(key: jax.Array) -> PyTree:
        shapes = {
            "router": (width, experts),
            "gate": (experts, width, hidden),
            "up": (experts, width, hidden),
            "down": (experts, hidden, width),
        }
        drawn = {f"{n}/kernel": (shape, shape[-2] ** -0.5) for n, shape in shapes.items()}
        norm = {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}
        return nest(normals(key, drawn)) | norm

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        y = layer_norm(params["norm"], x)[:, None]
        return x + moe_mlp(params, y, per_token=per_token, renormalise=False)[0][:, 0]

    return Stage(init, apply)


def chained(*stages: Stage) -> Stage:
    """Stages as one: weights {"part_i"}."""
    named = {f"part_{i}": stage for i, stage in enumerate(stages)}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for name, stage in named.items():
            x = stage.apply(params[name], x)
        return x

    return Stage(lambda key: _made(key, named), apply)


def _made(key: jax.Array, stages: Mapping[str, Stage]) -> PyTree:
    keys = jax.random.split(key, len(stages))
    return {name: stage.init(k) for (name, stage), k in zip(stages.items(), keys, strict=True)}


def _make_linears(key: jax.Array, maps: Mapping[str, tuple[int, int]], gain: float = 1.0) -> PyTree:
    """{name: {"kernel" normal of variance gain / in, "bias" 0}}."""
    drawn = {f"{name}/kernel": (sizes, (gain / sizes[0]) ** 0.5) for name, sizes in maps.items()}
    made = normals(key, drawn)
    return {
        name: {"kernel": made[f"{name}/kernel"], "bias": jnp.zeros(sizes[1])}
        for name, sizes in maps.items()
    }
