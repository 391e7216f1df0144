"""Flax modules as `kd_jax.types.Model`: nothing else in the package knows Linen or NNX.

An adapted module is called with batch["inputs"] and gives logits [..., C], or a `ModelOutput`.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models.lora import merge
from kd_jax.models.parts import fetched
from kd_jax.trees import flatten, map_with_path, nest
from kd_jax.types import Logits, Model, ModelOutput, PyTree


def _train_argument(train: bool) -> dict[str, Any]:
    return {"train": train}


def from_linen(
    module: nn.Module,
    example_inputs: Any,
    *,
    arguments: Callable[[bool], Mapping[str, Any]] = _train_argument,
    streams: Collection[str] = ("dropout",),
) -> Model:
    """A Linen module as a Model.

    The collection "params" is the parameters; every other collection that initialisation makes
    ("batch_stats") is the state, written when train is true and read otherwise.

    example_inputs: an array or ShapeDtypeStruct (or a tree of them) like batch["inputs"].
    arguments: train -> keyword arguments of the call: by default {"train": train}; for
        `deterministic`, lambda train: {"deterministic": not train}; for a module that takes
        neither, lambda train: {}.
    streams: names of the random streams that the module draws from when training; each has a key
        of its own made from apply's key.

    taps are the "/"-joined paths of values stored by `self.sow("intermediates", ...)`; add names
    places marked with `self.perturb`; the places not named get zeros, so that add costs one
    abstract evaluation. ValueError for names that the module does not have.
    """

    def zeros() -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_inputs)

    def variables(key: jax.Array) -> dict[str, Any]:
        made = dict(module.init(_streams(key, ("params", *streams)), zeros(), **arguments(False)))
        for passing in ("intermediates", "perturbations"):
            made.pop(passing, None)
        return made

    def init(key: jax.Array) -> PyTree:
        return variables(key)["params"]

    def state() -> PyTree:
        made = variables(jax.random.key(0))
        del made["params"]
        return made

    def places(params: PyTree, held: PyTree, x: Any) -> PyTree:
        """The perturbable places for inputs like x, as shapes."""

        def look(params, held, x):
            keys = _streams(jax.random.key(0), streams)
            _, found = module.apply(
                {"params": params, **held},
                x,
                rngs=keys,
                mutable=["perturbations"],
                **arguments(False),
            )
            return found.get("perturbations", {})

        return jax.eval_shape(look, params, held, x)

    def apply(
        params: PyTree,
        inputs: Mapping[str, Any],
        *,
        state: PyTree = {},
        key: jax.Array | None = None,
        train: bool = False,
        taps: Collection[str] = (),
        add: Mapping[str, jax.Array] = {},
    ) -> ModelOutput:
        x, held = inputs["inputs"], dict(state)
        params = merge(fetched(params))
        given = {"params": params, **held}
        if add:
            shapes = flatten(places(params, held, x))
            _known("add", add, shapes)
            empty = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}
            given["perturbations"] = nest(empty | dict(add))
        mutable = [*(held if train else ()), *(["intermediates"] if taps else ())]
        rngs = None if key is None else _streams(key, streams)
        out, changed = module.apply(given, x, rngs=rngs, mutable=mutable, **arguments(train))
        changed = dict(changed)
        sown = _sown(changed.pop("intermediates", {}))
        _known("taps", taps, sown)
        return _output(out, {name: sown[name] for name in taps}, held | changed)

    return Model(init, apply, state)


def from_nnx(factory: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """An NNX module as a Model; `factory` makes it from its random streams.

    Parameters are the `nnx.Param` variables, the state all others (`nnx.BatchStat`) but random
    streams, which are made anew from apply's key at each call. train puts the module in train or
    eval mode (`module.train()`, `module.eval()`). Each call merges copies, so that gradients and
    other transformations may be taken outside.

    taps are the "/"-joined paths of values stored by `self.sow(nnx.Intermediate, ...)`; add names
    places marked with `self.perturb` (add costs one abstract evaluation).

    ValueError for places that the module does not have, and for a module with random streams
    trained without a key.
    """
    abstract = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
    graph, like_params, like_streams, like_rest = nnx.split(abstract, nnx.Param, nnx.RngState, ...)

    def parts(key: jax.Array) -> tuple[PyTree, PyTree]:
        _, params, _, rest = nnx.split(factory(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def reseeded(key: jax.Array | None) -> nnx.State:
        def leaf(path: str, like: Any) -> jax.Array:
            if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
                root = jax.random.key(0) if key is None else key
                own = jax.random.fold_in(root, zlib.crc32(path.encode()))
                return own if like.shape == () else jax.random.split(own, like.shape)
            return jnp.zeros(like.shape, like.dtype)

        return map_with_path(leaf, like_streams)

    def merged(params: PyTree, held: PyTree, key: jax.Array | None, train: bool) -> nnx.Module:
        module = nnx.merge(
            graph, _filled(like_params, params), reseeded(key), _filled(like_rest, held), copy=True
        )
        (module.train if train else module.eval)()
        return module

    def places(params: PyTree, held: PyTree, x: Any) -> PyTree:
        """The perturbable places for inputs like x."""
        look = nnx.capture(_call, nnx.Perturbation)
        return jax.eval_shape(
            lambda p, s, x: nnx.to_pure_dict(look(merged(p, s, None, False), x)[1]), params, held, x
        )

    def apply(
        params: PyTree,
        inputs: Mapping[str, Any],
        *,
        state: PyTree = {},
        key: jax.Array | None = None,
        train: bool = False,
        taps: Collection[str] = (),
        add: Mapping[str, jax.Array] = {},
    ) -> ModelOutput:
        x, added = inputs["inputs"], None
        params = merge(fetched(params))
        if add:
            _known("add", add, flatten(places(params, state, x)))
            added = nnx.State(nest({name: nnx.Perturbation(delta) for name, delta in add.items()}))
        if train and key is None and jax.tree.leaves(like_streams):
            raise ValueError("key: got None, takes a key: the module draws random numbers")
        module = merged(params, state, key, train)
        out, stored = nnx.capture(_call, nnx.Intermediate, init=added)(module, x)
        sown = _sown(nnx.to_pure_dict(stored))
        _known("taps", taps, sown)
        _, _, _, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return _output(out, {name: sown[name] for name in taps}, nnx.to_pure_dict(rest))

    return Model(lambda key: parts(key)[0], apply, lambda: parts(jax.random.key(0))[1])


def _call(module: Any, x: Any) -> Any:
    return module(x)


def _filled(like: nnx.State, values: PyTree) -> nnx.State:
    filled = jax.tree.map(lambda x: x, like)
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _streams(key: jax.Array, names: Collection[str]) -> dict[str, jax.Array]:
    return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}


def _sown(tree: PyTree) -> dict[str, Any]:
    """{path: last value} of a tree whose leaves are the tuples that `sow` makes."""
    last = jax.tree.map(lambda x: x[-1], tree, is_leaf=lambda x: isinstance(x, tuple))
    return flatten(last)


def _known(argument: str, names: Collection[str], places: Collection[str]) -> None:
    unknown = sorted(set(names) - set(places))
    if unknown:
        raise ValueError(
            f"{argument}: got {', '.join(unknown)}, takes {', '.join(places) or 'no names'} here"
        )


def _output(out: Any, taps: Mapping[str, Any], state: PyTree) -> ModelOutput:
    if isinstance(out, ModelOutput):
        return out._replace(taps={**out.taps, **taps}, state=state)
    return ModelOutput(Logits(out), taps, state)
