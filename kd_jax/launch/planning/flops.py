"""FLOPs counted from a traced program: matrix products and convolutions, scans times their length.

The compiler's own count sees the body of a scan once, and a step of microbatches over scanned
layers is two scans deep. What is counted here is the work that the program asks for, on any mesh
and any platform.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from kd_jax.losses.streaming import RECOMPUTED


class Flops(NamedTuple):
    """total: of the whole mesh. recomputed: what rematerialisation adds, a part of total."""

    total: float
    recomputed: float

    @property
    def model(self) -> float:
        """What the method needs: no recomputation. Utilisation is counted in it."""
        return self.total - self.recomputed


def of(function: Callable[..., Any], *arguments: Any) -> Flops:
    """Of function(*arguments), arrays or ShapeDtypeStructs, traced as for one CPU.

    So attention is the dense form on every platform: all T^2 scores are counted, and nothing is
    taken off for the half that a causal mask hides, or for a window.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    cpu = AbstractDevice("cpu", None, "cpu")
    alone = AbstractMesh((1,), ("alone",), axis_types=(AxisType.Auto,), abstract_device=cpu)
    with jax.sharding.use_abstract_mesh(alone):
        return count(jax.make_jaxpr(function)(*shapes))


def count(jaxpr: Any) -> Flops:
    """Of a jaxpr, open or closed, over the whole mesh.

    A matrix product [M, K] x [K, N] is 2 M K N; a convolution is as many products as its output
    and kernel ask for, padding included, the zeros of a dilated input not; a ragged product has
    each row once. Elementwise work, reductions and gathers are not counted. The body of a scan
    counts `length` times; that of a while loop as often as it runs where that can be read from it
    (a counter from one constant to another), else once. A cond counts as its largest branch. The
    body of a shard_map sees one shard, and counts for each. A Pallas kernel counts as its
    cost_estimate says, without one as its body for each point of the grid.
    """
    return _count(getattr(jaxpr, "jaxpr", jaxpr), False)


def _count(jaxpr: Any, recomputed: bool) -> Flops:
    total = again = 0.0
    for equation in jaxpr.eqns:
        if not equation.outvars:  # a call of which recomputation needed nothing
            continue
        # The names inside a scan or a call do not repeat those outside.
        second = recomputed or RECOMPUTED in str(equation.source_info.name_stack)
        found = _of_equation(equation, second)
        total, again = total + found.total, again + found.recomputed
    return Flops(total, again)


def _of_equation(equation: Any, recomputed: bool) -> Flops:
    name, params = equation.primitive.name, equation.params
    own = _PRODUCTS.get(name)
    if own is not None:
        done = float(own(equation))
        return Flops(done, done if recomputed else 0.0)
    if name == "pallas_call" and params["cost_estimate"] is not None:
        done = float(params["cost_estimate"].flops)
        return Flops(done, done if recomputed else 0.0)
    inside = [_count(inner, recomputed) for inner in _inner(params)]
    if name == "cond":
        return max(inside, key=lambda found: found.total)
    times = _times(name, equation)
    return Flops(
        times * sum(found.total for found in inside),
        times * sum(found.recomputed for found in inside),
    )


def _times(name: str, equation: Any) -> int:
    """How often the inner jaxprs of an equation run."""
    params = equation.params
    if name == "scan":
        return params["length"]
    if name == "while":
        return _trips(equation)
    if name == "shard_map":
        axes = params["newly_manual_axes"]
        return math.prod(size for axis, size in params["mesh"].shape.items() if axis in axes)
    if name == "pallas_call":
        return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    return 1


def _trips(equation: Any) -> int:
    """Of a while loop `i = first; while i < last: i += step`; 1 for any other."""
    params = equation.params
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return 1
    counter, last = condition.eqns[0].invars
    carried = condition.invars[params["cond_nconsts"] :]
    if not isinstance(last, Literal) or counter not in carried:
        return 1
    index = carried.index(counter)
    first = equation.invars[params["cond_nconsts"] + params["body_nconsts"] + index]
    before, after = body.invars[params["body_nconsts"] + index], body.outvars[index]
    steps = [
        inner.invars[1]
        for inner in body.eqns
        if inner.primitive.name == "add" and inner.outvars[0] is after and inner.invars[0] is before
    ]
    if not isinstance(first, Literal) or not steps or not isinstance(steps[0], Literal):
        return 1
    return max(0, -(-(int(last.val) - int(first.val)) // int(steps[0].val)))


def _inner(params: Any) -> Iterator[Any]:
    """The jaxprs that an equation holds."""
    for value in params.values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return _product(equation, contracted)


def _product(equation: Any, contracted: Any) -> int:
    left = _shape(equation.invars[0])
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in contracted)


def _ragged_dot(equation: Any) -> int:
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    groups = _shape(equation.invars[2])[-1]
    # With groups along the summed dimension the output has one product a group.
    split = groups if set(numbers.lhs_ragged_dimensions) & set(contracted) else 1
    return _product(equation, contracted) // split


def _convolution(equation: Any) -> int:
    params = equation.params
    kernel = _shape(equation.invars[1])
    outputs = math.prod(_shape(equation.outvars[0]))
    of_one = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2 * outputs * of_one // math.prod(params["lhs_dilation"])


_PRODUCTS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
