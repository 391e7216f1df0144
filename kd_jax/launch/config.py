"""What every experiment's config has in common, and what of a config is its identity.

A config is a frozen, keyword-only dataclass of plain values. Fields made with `not_identity`
(mesh, logging, paths) may change between two starts of one run; all others are its identity: they
name its folder, and a checkpoint made under another identity is refused.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from kd_jax.launch.mesh import MeshConfig


def not_identity(default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING):
    """A dataclass field that changes how a run is carried out, never its result."""
    metadata = {"identity": False}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_positive(config: Any, *names: str) -> None:
    """ValueError for the first of these fields that is not above 0, or holds such an entry."""
    for name in names:
        value = getattr(config, name)
        if not all(x > 0 for x in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name}: got {value}, takes positive numbers only")


def check_distinct(config: Any, *names: str) -> None:
    """ValueError for the first of these fields that is empty, or has an entry twice."""
    for name in names:
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            said = " ".join(map(str, values)) or "none"
            raise ValueError(f"{name}: got {said}, takes each once, at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; an experiment's Config extends it."""

    mesh: MeshConfig = not_identity(default_factory=MeshConfig)
    """Axes of the device mesh."""
    log_every: int = not_identity(10)
    """Write training metrics every so many steps."""
    checkpoint_every: int = not_identity(100)
    """Save a checkpoint every so many steps; a killed run goes on from the latest."""
    wandb: str | None = not_identity(None)
    """Project to log to as well (needs the extra `wandb`)."""

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes at least 1")


def identity(config: Any) -> dict[str, Any]:
    """The fields of a config, nested ones too, that its result depends on, as plain JSON data."""
    return {
        field.name: identity(value) if dataclasses.is_dataclass(value) else plain(value)
        for field in dataclasses.fields(config)
        if field.metadata.get("identity", True)
        for value in [getattr(config, field.name)]
    }


def plain(value: Any) -> Any:
    """Legal JSON data: dataclasses and mappings to dicts, sequences and arrays to lists, paths to
    strings, functions and classes to their dotted name, nan and infinities to strings.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, functools.partial):
        return {"function": plain(value.func), "args": plain(value.args), **plain(value.keywords)}
    to_list = getattr(value, "tolist", None)  # numpy and jax arrays and scalars
    if callable(to_list):
        return plain(to_list())
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def digest(value: Any, length: int = 8) -> str:
    """The first hexadecimal digits of the SHA-256 of `plain(value)`."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """'beta: 0.1 there, 0.2 here' for each entry in which two trees of plain data differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        found = []
        for key in sorted(ours.keys() | theirs.keys()):
            name = f"{path}.{key}" if path else str(key)
            found += differences(ours.get(key, "absent"), theirs.get(key, "absent"), name)
        return found
    return [] if ours == theirs else [f"{path}: {theirs} there, {ours} here"]
