"""What a tree of weights will be, and how to make it where it belongs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kd_jax.launch.errors import UserError
from kd_jax.launch.sharding import Rules, shard_state, shardings_of, with_shardings
from kd_jax.trees import check_same
from kd_jax.types import TrainState, TrainStep

PyTree = Any


class Weights(NamedTuple):
    """A tree that does not exist yet.

    abstract: its ShapeDtypeStructs. make(tree of ShapeDtypeStructs that carry a sharding) -> its
    arrays, each made in its sharding; every call makes new ones, so that a donated tree and a
    frozen one never share a buffer. A plain tuple of the two, as model readers return, becomes one
    by `Weights(*pair)`.
    """

    abstract: PyTree
    make: Callable[[PyTree], PyTree]


def from_init(init: Callable[..., PyTree], *args: Any) -> Weights:
    """The result of init(*args), jitted so that it is born in its shardings."""

    def make(placed: PyTree) -> PyTree:
        return jax.jit(init, out_shardings=shardings_of(placed))(*args)

    return Weights(jax.eval_shape(init, *args), make)


def from_arrays(tree: PyTree) -> Weights:
    """Copies of arrays that are there already: numpy arrays, or jax arrays on any devices."""

    def put(x: Any, placed: jax.ShapeDtypeStruct) -> jax.Array:
        if isinstance(x, jax.Array):
            # device_put may share buffers with x, whatever may_alias says, and a shared one would
            # die when a training step is given the result.
            return jax.jit(jnp.copy, out_shardings=placed.sharding)(
                jax.device_put(x, placed.sharding)
            )
        x = np.asarray(x)
        return jax.make_array_from_callback(
            x.shape, placed.sharding, lambda where: np.array(x[where])
        )

    return Weights(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), tree),
        lambda placed: jax.tree.map(put, tree, placed),
    )


def from_checkpoint(path: str | Path) -> Weights:
    """A tree saved by orbax, read straight into its shardings; nested dicts, whatever was saved.

    UserError when there is none at `path`.
    """
    from orbax.checkpoint import v1

    folder = str(Path(path).absolute())
    try:
        described = v1.metadata(folder).metadata
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no readable checkpoint ({first})") from None
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), described)

    def make(placed: PyTree) -> PyTree:
        return v1.load(folder, with_shardings(abstract, shardings_of(placed)))

    return Weights(abstract, make)


def cast(weights: Weights, dtype: Any) -> Weights:
    """The same tree with its floating leaves in `dtype`: a frozen model in bfloat16.

    The tree is made as it was, and each leaf of it given up once it is cast.
    """
    dtype = jnp.dtype(dtype)

    def narrow(x: Any) -> jnp.dtype:
        return dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype

    def make(placed: PyTree) -> PyTree:
        def one(x: jax.Array, to: Any) -> jax.Array:
            if x.dtype == narrow(x):
                return x
            y = jax.jit(lambda x: x.astype(narrow(x)), out_shardings=to)(x)
            x.delete()
            return y

        shardings = shardings_of(placed)
        wide = weights.make(with_shardings(weights.abstract, shardings))
        return jax.tree.map(one, wide, shardings)

    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, narrow(x)), weights.abstract)
    return Weights(abstract, make)


def joined(**weights: Weights) -> Weights:
    """One tree {name: tree} of several."""

    def make(placed: Mapping[str, PyTree]) -> dict[str, PyTree]:
        return {name: part.make(placed[name]) for name, part in weights.items()}

    return Weights({name: part.abstract for name, part in weights.items()}, make)


def abstract_state(
    step: TrainStep,
    weights: Weights,
    frozen: PyTree,
    batch: PyTree,
    *,
    rules: Rules,
    mesh: Mesh,
    extra: Rules = (),
) -> TrainState:
    """The state that `init_state` makes, as ShapeDtypeStructs that carry shardings.

    frozen and batch (global) may be arrays or ShapeDtypeStructs. rules and extra: see
    `shard_state`. It is what `Checkpoints.restore_latest` and a plan take, too.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(step.init, key, weights.abstract, frozen, batch)
    check_same("state.params['model']", shapes.params["model"], "weights", weights.abstract)
    return with_shardings(shapes, shard_state(shapes, rules, mesh, extra=extra))


def init_state(
    step: TrainStep,
    weights: Weights,
    frozen: PyTree,
    batch: PyTree,
    key: jax.Array,
    abstract: TrainState,
) -> TrainState:
    """A fresh state, every array of it made in its sharding; abstract: from `abstract_state`.

    The model's part goes from `weights.make` into the state without a second copy.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), batch)

    def init(key: jax.Array, params: PyTree, frozen: PyTree) -> TrainState:
        # Only the shapes of the batch are read, so these zeros are never made.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return step.init(key, params, frozen, zeros)

    params = weights.make(abstract.params["model"])
    return jax.jit(init, out_shardings=shardings_of(abstract), donate_argnums=1)(
        key, params, frozen
    )
