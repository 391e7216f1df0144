"""Values of a recipe's parameters: one number, a gradient over the layers, rules by tensor name.

The rules are mergekit's (arcee-ai/mergekit, config.py and plan.py):

- A list of {filter, value} gives the value of the first entry whose filter is part of the tensor's
  name; no filter, or "*", fits all. Where none fits, the next level is asked.
- A list of numbers is interpolated linearly over the layers of the slice, the first number at its
  first layer; the only layer of a slice has the last number. What is in no layer (embeddings, the
  final norm, the head) has the first.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax.merging.disk.errors import MergeError

Value = float | bool


class Rule(NamedTuple):
    """`values` (one, or a gradient) for the tensors whose names contain `fits`; None for all."""

    fits: str | None
    values: tuple[Value, ...]


Setting = tuple[Rule, ...]
Settings = Mapping[str, Setting]


def parse_settings(where: str, given: Any) -> dict[str, Setting]:
    """The checked settings of a `parameters` key, {} for none; MergeError names what is wrong."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise MergeError(f"{where}: got {given!r}, takes names with their values")
    return {name: _parse(f"{where}.{name}", value) for name, value in given.items()}


def _parse(where: str, given: Any) -> Setting:
    rules = given if isinstance(given, list) else [given]
    if not any(isinstance(rule, dict) for rule in rules):
        return (Rule(None, _values(where, given)),)
    found = []
    for i, rule in enumerate(rules):
        place = f"{where}[{i}]"
        if not isinstance(rule, dict) or "value" not in rule or set(rule) - {"filter", "value"}:
            raise MergeError(f"{place}: got {rule!r}, takes value and, if not for all, filter")
        fits = rule.get("filter")
        if not (fits is None or isinstance(fits, str)):
            raise MergeError(f"{place}.filter: got {fits!r}, takes a part of a tensor's name")
        values = _values(f"{place}.value", rule["value"])
        found.append(Rule(None if fits == "*" else fits, values))
    return tuple(found)


def _values(where: str, given: Any) -> tuple[Value, ...]:
    if not isinstance(given, list):
        return (_number(where, given),)
    if not given:
        raise MergeError(f"{where}: got an empty list, takes a number or numbers")
    return tuple(_number(f"{where}[{i}]", value) for i, value in enumerate(given))


def _number(where: str, given: Any) -> Value:
    if isinstance(given, bool):
        return given
    try:
        number = float(given)  # of text too: YAML reads 1e-3 as text
        if math.isfinite(number):
            return number
    except (ValueError, TypeError, OverflowError):
        pass
    raise MergeError(f"{where}: got {given!r}, takes a finite number, true or false")


def value_of(setting: Setting, tensor: str, depth: float) -> Value | None:
    """What a setting says for a tensor at `depth` (0 first layer, 1 last); None: nothing."""
    for rule in setting:
        if rule.fits is None or rule.fits in tensor:
            return _interpolated(rule.values, depth)
    return None


def _interpolated(values: Sequence[Value], depth: float) -> Value:
    if len(values) == 1:
        return values[0]
    at = depth * (len(values) - 1)
    i = min(int(at), len(values) - 2)
    return values[i] + (at - i) * (values[i + 1] - values[i])


def resolve(name: str, levels: Sequence[Settings], tensor: str, depth: float) -> Value | None:
    """The value of the first level that has one for this tensor."""
    for level in levels:
        if name in level:
            value = value_of(level[name], tensor, depth)
            if value is not None:
                return value
    return None
