"""Where every array of a run lives: logical names to mesh axes, over the whole state.

A model's RULES are pairs (path pattern, logical name of each dimension). TABLE says on which mesh
axes a logical name lies; methods and models never mention the mesh.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from kd_jax.launch.errors import UserError
from kd_jax.optim import UNDECAYED
from kd_jax.trees import as_predicate, flatten, map_with_path, match_rules
from kd_jax.types import TrainState

PyTree = Any
Rules = Sequence[tuple[str, Any]]  # (path pattern, a logical name or None for each dimension)
Table = Mapping[str, Any]  # logical name -> a mesh axis, several, or None

TABLE: Table = {
    "batch": ("data", "fsdp", "expert"),
    "embed": "fsdp",
    "experts": "expert",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "length": "context",
    "layers": None,
    "head_dim": None,
    "features": None,
    "classes": None,
}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data, fsdp and expert: for every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec(TABLE["batch"]))


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return _ways(TABLE["batch"], mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_tree(abstract: PyTree, rules: Rules, mesh: Mesh, *, table: Table = TABLE) -> PyTree:
    """The NamedSharding of every leaf of a model's weights, trained or frozen.

    abstract: a tree of anything that has a shape. rules: pattern over the whole path, and a
    logical name or None for each dimension; () or None for all of them replicates the leaf.

    Raises ValueError for a leaf with no rule, a rule that matches nothing, a wrong number of names,
    an unknown name, two dimensions on one mesh axis; UserError for a dimension that the mesh does
    not divide.
    """
    names = match_rules([(pattern, _Names(value)) for pattern, value in rules], abstract)

    def place(path: str, leaf: Any, held: _Names) -> NamedSharding:
        return NamedSharding(mesh, _spec(path, leaf.shape, held.names, mesh, table))

    return map_with_path(place, abstract, names)


def shard_state(
    abstract: TrainState, rules: Rules, mesh: Mesh, *, extra: Rules = (), table: Table = TABLE
) -> TrainState:
    """The NamedSharding of every leaf of a TrainState.

    params["model"] follows `rules`. A leaf of opt_state or carry whose path ends with the path of
    a parameter follows that parameter where it has its shape (moments, masters, EMA teachers); it
    drops one axis where it lacks one dimension (Adafactor's rows and columns), and replicates where
    it is not clear which. All else replicates: scalars, keys, aux parameters, banks.

    extra: rules that come before these, over paths "aux/...", "carry/..." and "opt_state/...".

    Errors as for `shard_tree`, an extra rule that matches nothing included.
    """
    model = shard_tree(abstract.params["model"], rules, mesh, table=table)
    rest = {
        "aux": abstract.params["aux"],
        "opt_state": abstract.opt_state,
        "carry": abstract.carry,
    }
    ruled = {
        path: _spec(path, leaf.shape, names, mesh, table)
        for path, (leaf, names) in _claim(extra, flatten(rest)).items()
    }
    shapes = {
        f"model/{path}": leaf.shape for path, leaf in flatten(abstract.params["model"]).items()
    }
    shapes |= {f"aux/{path}": leaf.shape for path, leaf in flatten(rest["aux"]).items()}
    specs = {f"model/{path}": placed.spec for path, placed in flatten(model).items()}
    specs |= {path: ruled.get(path, PartitionSpec()) for path in shapes if path not in specs}

    def place(path: str, leaf: Any) -> NamedSharding:
        spec = ruled.get(path)
        if spec is None:
            spec = _follow(path, leaf.shape, shapes, specs)
        return NamedSharding(mesh, spec)

    placed = map_with_path(place, rest)
    everywhere = replicated(mesh)
    return abstract._replace(
        step=everywhere,
        params={"model": model, "aux": placed["aux"]},
        opt_state=placed["opt_state"],
        carry=placed["carry"],
        key=everywhere,
    )


def with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
    """ShapeDtypeStructs that carry the shardings: what `Weights.make` and a restore take."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def shardings_of(tree: PyTree) -> PyTree:
    """The sharding of every leaf, of arrays or of ShapeDtypeStructs that carry one."""
    return jax.tree.map(lambda x: x.sharding, tree)


def on_host(abstract: PyTree) -> PyTree:
    """The same ShapeDtypeStructs, all but vectors (biases and scales) in the host's memory."""
    vector = as_predicate(UNDECAYED)

    def move(path: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if vector(path):
            return x
        placed = x.sharding.with_memory_kind("pinned_host")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    return map_with_path(move, abstract)


@contextlib.contextmanager
def activation_rules(mesh: Mesh, *, table: Table = TABLE) -> Iterator[None]:
    """While tracing inside: `with_logical_constraint(x, names)` resolves on this mesh."""
    rules = tuple(table.items())
    # set_mesh is refused while tracing; the constraint needs no more than the abstract mesh.
    with nn.logical_axis_rules(rules), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def on_mesh(f: Callable[..., Any], mesh: Mesh, *, table: Table = TABLE) -> Callable[..., Any]:
    """f with the names of its activations resolved: to be jitted. It costs nothing once traced."""

    @functools.wraps(f)
    def traced(*args: Any) -> Any:
        with activation_rules(mesh, table=table):
            return f(*args)

    return traced


def check_activations(jaxpr: Any) -> None:
    """UserError for a constraint in a traced function that splits a dimension unevenly.

    XLA would pad it without a word: heads cut in two, devices that compute padding.
    """
    for equation in jaxpr.eqns:
        sharding = equation.params.get("sharding")
        if equation.primitive.name == "sharding_constraint" and isinstance(sharding, NamedSharding):
            shape = equation.invars[0].aval.shape
            for dimension, axes in enumerate(sharding.spec):
                ways = _ways(axes, sharding.mesh)
                if shape[dimension] % ways:
                    raise UserError(
                        f"an activation of shape {shape}: dimension {dimension} of size "
                        f"{shape[dimension]} does not divide over {_sizes(axes, sharding.mesh)}; "
                        f"{_advice(axes)}"
                    )
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    check_activations(inner)


class _Names:
    """Keeps a rule's names one leaf of a tree."""

    def __init__(self, names: tuple[str | None, ...] | None):
        self.names = names


def _claim(rules: Rules, flat: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{path: (leaf, names)} of the leaves that the rules match; the first rule wins."""
    claimed: dict[str, tuple[Any, Any]] = {}
    for pattern, names in rules:
        hits = [path for path in flat if re.fullmatch(pattern, path)]
        if not hits:
            raise ValueError(f"rules that match no path: {pattern!r}; there are {', '.join(flat)}")
        claimed = {path: (flat[path], names) for path in hits} | claimed
    return claimed


def _spec(path: str, shape: Sequence[int], names: Any, mesh: Mesh, table: Table) -> PartitionSpec:
    if not names:
        return PartitionSpec()
    if len(names) != len(shape):
        raise ValueError(f"{path}: rule {tuple(names)} names {len(names)} dimensions of {shape}")
    unknown = [name for name in names if name is not None and name not in table]
    if unknown:
        raise ValueError(f"{path}: unknown names {unknown}; there are {', '.join(table)}")
    axes = [None if name is None else table[name] for name in names]
    used: dict[str, str] = {}
    for dimension, (name, placed) in enumerate(zip(names, axes, strict=True)):
        for axis in _axes(placed):
            if axis in used:
                raise ValueError(f"{path}: {used[axis]} and {name} both lie on mesh axis {axis}")
            used[axis] = name
        if shape[dimension] % _ways(placed, mesh):
            raise UserError(
                f"{path}: dimension {dimension} ({name}) of size {shape[dimension]} does not "
                f"divide over {_sizes(placed, mesh)}; {_advice(placed)}"
            )
    return PartitionSpec(*axes)


def _follow(
    path: str,
    shape: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    specs: Mapping[str, PartitionSpec],
) -> PartitionSpec:
    """The spec of the parameter with the longest path that `path` ends with, fitted to `shape`."""
    parts = path.split("/")
    for start in range(len(parts)):
        suffix = "/".join(parts[start:])
        # An optimiser may hold params or the model's part alone.
        for name in (suffix, f"model/{suffix}"):
            if name in shapes:
                spec = _fit(tuple(shape), tuple(shapes[name]), specs[name])
                if spec is not None:
                    return spec
    return PartitionSpec()


def _fit(
    shape: tuple[int, ...], like: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec | None:
    """spec for `shape`, which is `like` or `like` without one dimension; None for other shapes."""
    if shape == like:
        return spec
    axes = [*spec, *[None] * (len(like) - len(spec))]
    fits = {
        PartitionSpec(*axes[:i], *axes[i + 1 :])
        for i in range(len(like))
        if shape and like[:i] + like[i + 1 :] == shape
    }
    return fits.pop() if len(fits) == 1 else None


def _axes(placed: Any) -> tuple[str, ...]:
    if placed is None or placed is PartitionSpec.UNCONSTRAINED:  # which vmap makes of its axis
        return ()
    return (placed,) if isinstance(placed, str) else tuple(placed)


def _ways(placed: Any, mesh: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(placed))


def _sizes(placed: Any, mesh: Any) -> str:
    return " * ".join(f"{axis}={mesh.shape[axis]}" for axis in _axes(placed))


def _advice(placed: Any) -> str:
    flags = ", ".join(f"--mesh.{axis}" for axis in _axes(placed))
    if "tensor" in _axes(placed):
        return f"lower {flags} until it divides the model's heads and kv_heads, MLP and vocabulary"
    return f"lower {flags}, or choose a size that they divide"
