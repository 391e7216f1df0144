"""Traffic between chips, read from a compiled program, loops times their trip counts.

Bytes are what one device sends when n of them work as a ring on a result of R bytes: all-gather
and all-to-all (n - 1) / n R, all-reduce 2 (n - 1) / n R, reduce-scatter (n - 1) R, permute R. What
goes between slices, over the data centre's network, is "dcn": the bytes that a device hands over.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Traffic = dict[str, float]

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_SHAPE = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class _Instruction(NamedTuple):
    name: str
    shape: str
    code: str
    rest: str  # all behind the opening bracket of its operands

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.partition(")")[0])


_Computation = dict[str, _Instruction]  # in their order; the last one is the result


def traffic(text: str) -> Traffic:
    """{kind: bytes a device sends} of a program's text after compilation, whatever it runs once.

    A loop whose trip count cannot be read (neither known_trip_count nor a constant that its
    condition compares with) counts once, and of branches the one with the most traffic.
    """
    devices = math.prod(
        int(n) for n in re.findall(r"(?:replica_count|num_partitions)=(\d+)", text[:20_000])
    )
    computations, entry = _parse(text)
    done: dict[str, _Sum] = {}

    def of(name: str) -> "_Sum":
        if name not in done:
            done[name] = _Sum()
            for instruction in computations.get(name, {}).values():
                _add(done[name], name, instruction, of, computations, devices)
        return done[name]

    return of(entry).totals()


class _Sum:
    """Bytes by kind; pieces of one transfer, which the compiler spreads over fusions, are one."""

    def __init__(self) -> None:
        self.plain: Traffic = {}
        self.chained: dict[str, tuple[str, float]] = {}

    def add(self, kind: str, size: float, chain: str | None = None) -> None:
        if chain is None:
            self.plain[kind] = self.plain.get(kind, 0.0) + size
        else:
            self.chained[chain] = (kind, size)

    def totals(self) -> Traffic:
        found = dict(self.plain)
        for kind, size in self.chained.values():
            found[kind] = found.get(kind, 0.0) + size
        return {kind: size for kind, size in sorted(found.items()) if size}


def _add(
    into: _Sum,
    computation: str,
    instruction: _Instruction,
    of: Any,
    computations: Mapping[str, _Computation],
    devices: int,
) -> None:
    code, rest = instruction.code, instruction.rest
    kind = code.removesuffix("-start")
    if kind in KINDS:
        found = _bytes_sent(kind, instruction, computation, devices)
        into.add(*found, _chain(rest))
    elif code == "send" and "_xla_megascale_transfer_type" in rest:
        into.add("dcn", _size(_elements(instruction.shape)[0]))
    elif code == "while":
        body = re.search(r"body=%?([\w.-]+)", rest)
        if body:
            trips = _trips(instruction, computations[computation], computations)
            for name, size in of(body[1]).totals().items():
                into.add(name, trips * size)
    elif code == "conditional":
        listed = _BRANCHES.search(rest)
        names = re.findall(r"[\w.-]+", listed[1]) if listed else _CALLED.findall(rest)
        branches = [of(name).totals() for name in names]
        for name, size in max(branches, key=lambda found: sum(found.values()), default={}).items():
            into.add(name, size)
    elif code not in ("async-update", "async-done"):  # they name what their start has called
        for called in _CALLED.findall(rest):
            inner = of(called)
            for name, size in inner.plain.items():
                into.add(name, size)
            into.chained |= inner.chained


def _bytes_sent(
    kind: str, instruction: _Instruction, computation: str, devices: int
) -> tuple[str, float]:
    shape = instruction.shape
    if instruction.code in ("all-gather-start", "collective-permute-start"):
        shape = _elements(shape)[1]  # (operands, results, ...)
    size, n = _size(shape), _group(instruction.rest, devices)
    if kind == "collective-permute":
        return kind, size
    if kind == "reduce-scatter":
        return kind, (n - 1) * size
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        return "reduce-scatter", (n - 1) / n * size  # written as a reduction of which a part stays
    return kind, (2 if kind == "all-reduce" else 1) * (n - 1) / n * size


def _chain(rest: str) -> str | None:
    found = re.search(r"channel_id=(\d+)", rest), re.search(r'chain_id="(\w+)"', rest)
    return f"{found[0][1]}/{found[1][1]}" if found[0] and found[1] else None


def _group(rest: str, devices: int) -> int:
    """How many devices work together: replica_groups in any of its three forms."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return listed[1].count(",") + 1
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
    if tiled:
        return int(tiled[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        # 'axis':(2)4 is a part of an axis, of size 4.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _trips(loop: _Instruction, around: _Computation, all_: Mapping[str, _Computation]) -> int:
    """How often a loop runs: as the compiler says, or `while counter < bound: counter += step`."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition, body = (
        all_.get(found[1], {}) if (found := re.search(rf"{part}=%?([\w.-]+)", loop.rest)) else {}
        for part in ("condition", "body")
    )
    for test in condition.values():
        direction = re.search(r"direction=(LT|LE)", test.rest)
        if test.code != "compare" or not direction:
            continue
        counter, bound = condition.get(test.operands[0]), _constant(test.operands[1], condition)
        place = counter and re.search(r"index=(\d+)", counter.rest)
        if not place or bound is None:
            continue
        index = int(place[1])
        first = _element(around.get(loop.operands[0]), index)
        start = _constant(first, around) or 0
        after = body.get(_element(list(body.values())[-1] if body else None, index))
        steps = [_constant(name, body) for name in after.operands] if after else []
        step = next((n for n in steps if n), 1)
        return max(0, -(-(bound + (direction[1] == "LE") - start) // step))
    constants = [n for i in condition if (n := _constant(i, condition)) is not None]
    return constants[0] if len(constants) == 1 else 1


def _element(tuple_: _Instruction | None, index: int) -> str:
    """The name of an operand of a tuple; "" where it is none."""
    if tuple_ is None or tuple_.code != "tuple" or index >= len(tuple_.operands):
        return ""
    return tuple_.operands[index]


def _constant(name: str, computation: _Computation) -> int | None:
    """The integer that an instruction is, perhaps by way of copies."""
    found = computation.get(name)
    while found is not None and found.code in ("copy", "bitcast", "convert"):
        found = computation.get(found.operands[0])
    if found is None or found.code != "constant":
        return None
    value = re.match(r"(-?\d+)\)", found.rest)
    return int(value[1]) if value else None


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """({name: computation}, the name of the one that starts)."""
    computations: dict[str, _Computation] = {}
    entry, body = "", {}
    for line in text.splitlines():
        if line and not line[0].isspace():
            opened = _COMPUTATION.match(line)
            if opened:
                body = computations.setdefault(opened[2], {})
                entry = opened[2] if opened[1] else entry
        else:
            found = _INSTRUCTION.match(line)
            if found:
                body[found[1]] = _Instruction(*found.groups())
    return computations, entry


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape; a shape that is no tuple is its own only element."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(shape[start:i].strip())
            start = i + 1
    return parts


def _size(shape: str) -> float:
    """Bytes of an array's shape, or of all arrays in a tuple's."""
    total = 0.0
    for kind, bits, dimensions in _SHAPE.findall(shape):
        size = 1.0 if kind == "pred" else int(bits) / 8
        total += size * math.prod(int(n) for n in dimensions.split(",") if n)
    return total
