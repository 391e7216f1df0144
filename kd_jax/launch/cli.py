"""The command line of an experiment: python -m experiments.family.name PRESET [--field value ...].

Flags and their help come from the fields and docstrings of the module's Config. Whatever is wrong
with a command ends as one line that names the argument.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import io
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any, NamedTuple, NoReturn

import tyro

from kd_jax.launch import profile
from kd_jax.launch.config import Settings
from kd_jax.launch.errors import UserError


class Command(NamedTuple):
    """A parsed command. workdir: None for the default. plan: a topology, or None to run. profile:
    the first and the last step to trace."""

    preset: str
    config: Any
    workdir: str | None
    plan: str | None
    profile: tuple[int, int] | None
    list_stages: bool


class Parser(argparse.ArgumentParser):
    """argparse for the small tools; what is wrong becomes a UserError of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help says more")


def load(name: str) -> ModuleType:
    """Imports an experiment module and checks its outline."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UserError(f"no module {name}; python -m experiments lists all") from None
    missing = [
        part
        for part in ("Config", "PRESETS", "CLAIMS", "stages", "report")
        if not hasattr(module, part)
    ]
    if missing:
        raise UserError(f"{name} is no experiment: it has no {', '.join(missing)}")
    if not issubclass(module.Config, Settings):
        raise TypeError(f"{name}.Config: takes a subclass of kd_jax.launch.config.Settings")
    return module


def claim_of(module: ModuleType) -> str:
    """The first paragraph of an experiment's docstring, on one line."""
    return " ".join((module.__doc__ or "").strip().split("\n\n", 1)[0].split())


def preset(module: ModuleType, name: str) -> Any:
    """The config of a preset."""
    try:
        return module.PRESETS[name]
    except KeyError:
        raise UserError(f"unknown preset {name}; takes {', '.join(module.PRESETS)}") from None


def parse(module: ModuleType, name: str, argv: Sequence[str]) -> Command:
    """Raises UserError for a bad command; SystemExit(0) after printing the help."""
    program = f"python -m {name}"
    if not argv:
        raise UserError(f"name a preset: {', '.join(module.PRESETS)}; {program} --help says more")
    chosen, rest = argv[0], list(argv[1:])
    if chosen in ("-h", "--help"):
        print((module.__doc__ or "").strip(), "\n\npresets:", ", ".join(module.PRESETS), "\n")
        chosen, rest = next(iter(module.PRESETS)), ["--help"]
    elif chosen.startswith("-"):
        raise UserError(f"the preset comes first, before {chosen}: {', '.join(module.PRESETS)}")
    default = preset(module, chosen)
    flags = dataclasses.make_dataclass(
        "Flags", _flag_fields(type(default)), frozen=True, kw_only=True
    )
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            got = tyro.cli(
                flags,
                args=rest,
                default=flags(config=default),
                prog=f"{program} {chosen}",
                description=f"Preset {chosen} of {name}.",
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(
            f"{_one_line(boxed.getvalue(), default)}; {program} {chosen} --help lists all flags"
        ) from None
    except ValueError as error:  # a config that refuses its values
        raise UserError(str(error)) from None
    steps = None if got.profile is None else profile.parse(got.profile)
    return Command(chosen, got.config, got.workdir, got.plan, steps, got.list_stages)


def _flag_fields(config: type) -> list[tuple[str, Any, Any]]:
    """The fields of the whole command line: those of the config, unprefixed, and a run's own."""

    def flag(name: str, kind: Any, default: Any, help: str) -> tuple[str, Any, Any]:
        return name, Annotated[kind, tyro.conf.arg(help=help)], dataclasses.field(default=default)

    off = tyro.conf.FlagCreatePairsOff[bool]
    return [
        # A field of several classes keeps the preset's one, whose fields are the flags.
        (
            "config",
            Annotated[config, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands],
            dataclasses.field(),
        ),
        flag("workdir", str | None, None, "Folder of the run; the only one it writes to."),
        flag(
            "plan",
            str | None,
            None,
            "Run nothing: compile every program for this topology (cpu:8, v5e:16x16, "
            "v5p:4x4x4,slices=2) and say whether it fits and what bounds it.",
        ),
        flag(
            "profile",
            str | None,
            None,
            "Trace these steps of each training (10:15) into the run's folder, for xprof.",
        ),
        flag("list_stages", off, False, "Run nothing: say which stages are finished."),
    ]


def _one_line(boxed: str, config: Any) -> str:
    """The message of tyro's box, and for an unknown flag the nearest one that there is."""
    body: list[str] = []
    for line in boxed.splitlines()[1:]:  # the first is the title
        text = line.strip().strip("│").strip()
        if not re.fullmatch("[─╰╯-]*", text):
            body.append(text)
        elif body:
            break
    message = " ".join(body).rstrip(".")
    unknown = re.match(r"Unrecognized options: (.*)", message)
    if unknown:
        first, *values = unknown.group(1).split(", ")
        known = [*_flags(config), "--workdir", "--plan", "--profile", "--list-stages"]
        near = difflib.get_close_matches(first.split("=")[0].replace("_", "-"), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        given = f" (given {' '.join(values)})" if values else ""
        message = f"unknown argument {first}{given}{hint}"
    return message or "cannot read the command"


def _flags(config: Any, prefix: str = "--") -> list[str]:
    found = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            found += _flags(value, f"{name}.")
        else:
            found.append(name)
    return found
