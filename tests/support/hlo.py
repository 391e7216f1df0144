"""Which arrays a program holds: for tests that one of them does not exist."""

import re
from typing import Any

# (dimensions, those of size 1 left out)
Shapes = set[tuple[int, ...]]

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_RESULT = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\(")


def arrays_in(program: Any) -> Shapes:
    """The shapes of all arrays of a jaxpr, or of a compiled program's text.

    Of a compiled program those that lie in memory, a device's part of each: what a fusion makes
    for itself never does. The arrays of a jaxpr may be fused away.
    """
    return _of_text(program) if isinstance(program, str) else _of_jaxpr(program)


def _of_text(text: str) -> Shapes:
    fused = set(re.findall(r" fusion\(.*?calls=%?([\w.-]+)", text))
    found, inside = set(), ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        result = _RESULT.match(line)
        if opened:
            inside = opened[1]
        elif result and inside not in fused:
            for dimensions in re.findall(r"[a-z]+\d+[a-z0-9]*\[([\d,]*)\]", result[1]):
                found.add(_kept(int(n) for n in dimensions.split(",") if n))
    return found


def _of_jaxpr(jaxpr: Any) -> Shapes:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found = set()
    for equation in jaxpr.eqns:
        found |= {_kept(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")}
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= _of_jaxpr(inner)
    return found


def _kept(shape: Any) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
