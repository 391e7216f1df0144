"""Which fields of an experiment's config does nobody read? A flag that does nothing is a lie."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from kd_jax.launch.config import Settings

# They read every field to name a run or to copy a config, which uses none of them.
_COPIERS = ("dataclasses", "copy", "kd_jax.launch.config")


def unread_fields(config: Any, run: Callable[[Any], Any]) -> list[str]:
    """The dotted names of the fields that run(config) does not read.

    `run` is given a config of the same class that takes note, and should go the whole way: run the
    experiment at its smallest. Fields of Settings are launch's to read. Nested configs are looked
    into where they are defined in the same package; one of the library counts as one field.
    """
    read: set[str] = set()
    package = type(config).__module__.split(".")[0]
    fields = _fields(config, package)
    run(_recording(config, package, read, ""))
    return sorted(set(fields) - read)


def _fields(config: Any, package: str, prefix: str = "") -> list[str]:
    found = []
    shared = {field.name for field in dataclasses.fields(Settings)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(config, Settings) and field.name in shared:
            continue
        if _is_own(value, package):
            found += _fields(value, package, f"{prefix}{field.name}.")
        else:
            found.append(prefix + field.name)
    return found


def _is_own(value: Any, package: str) -> bool:
    return dataclasses.is_dataclass(value) and type(value).__module__.split(".")[0] == package


def _recording(config: Any, package: str, read: set[str], prefix: str) -> Any:
    kind, names = type(config), {field.name for field in dataclasses.fields(config)}

    class Recording(kind):
        def __getattribute__(self, name: str) -> Any:
            if name in names and sys._getframe(1).f_globals["__name__"] not in _COPIERS:
                read.add(prefix + name)
            return super().__getattribute__(name)

        # The generated ones read every field.
        def __hash__(self) -> int:
            return hash(config)

        def __eq__(self, other: Any) -> bool:
            return config == getattr(other, "_unrecorded", other)

        def __repr__(self) -> str:
            return repr(config)

    Recording.__module__, Recording.__qualname__ = kind.__module__, kind.__qualname__
    made = object.__new__(Recording)
    for name in names:
        value = getattr(config, name)
        if _is_own(value, package):
            value = _recording(value, package, read, f"{prefix}{name}.")
        object.__setattr__(made, name, value)
    object.__setattr__(made, "_unrecorded", config)
    return made
