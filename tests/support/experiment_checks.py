"""What the tests of all experiments ask: hashes, verdicts, refusals, artefacts made by hand."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from kd_jax.launch import cli
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results, judge
from kd_jax.launch.config import identity
from kd_jax.launch.errors import UserError
from kd_jax.launch.run import stages_of
from kd_jax.launch.stages import Stage, keys


@contextlib.contextmanager
def real_data() -> Iterator[None]:
    """What is read here is skipped where there are neither files nor a network, and nobody said
    where files lie."""
    try:
        yield
    except FileNotFoundError as error:
        if os.environ.get("KD_JAX_DATA"):
            raise
        pytest.skip(f"missing data: {error}")


def _stages(module: ModuleType, config: Any) -> tuple[Stage, ...]:
    with real_data():  # of some experiments stages depend on how many examples there are
        return stages_of(module, config)


def outline(module: ModuleType, config: Any) -> dict[str, tuple[str, ...]]:
    """{stage: its needs}."""
    return {stage.name: stage.needs for stage in _stages(module, config)}


def changed(module: ModuleType, first: Any, second: Any) -> set[str]:
    """The stages that two configs do not share."""
    one, two = (keys(_stages(module, c), module.__name__, identity(c)) for c in (first, second))
    assert one.keys() == two.keys()
    return {name for name in one if one[name] != two[name]}


def verdicts(module: ModuleType, results: Results, preset: str = "laptop") -> list[str]:
    return [judge(claim, results, preset)["verdict"] for claim in module.CLAIMS]


def refusal(module: ModuleType, *argv: str) -> str:
    """What is said of a bad command line: one line."""
    with pytest.raises(UserError) as error:
        command = cli.parse(module, module.__name__, argv)
        stages_of(module, command.config)
    assert "\n" not in str(error.value)
    return str(error.value)


def help_of(module: ModuleType, preset: str, capsys: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.parse(module, module.__name__, [preset, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """Without XLA's optimisations: for runs of a few steps, which spend their time compiling."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


class Made(NamedTuple):
    """An artefact made by hand, as `report` reads it."""

    values: Mapping[str, Any] = {}
    rows: Mapping[str, np.ndarray] = {}
    history: Sequence[Mapping[str, Any]] = ()

    def series(self, name: str) -> tuple[list[int], list[float]]:
        return Artefact.series(self, name)  # pyright: ignore[reportArgumentType]
