"""A program compiled for devices that need not be there, and the compiler's account of it."""

import hashlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kd_jax.launch.planning import flops
from kd_jax.launch.planning.collectives import Traffic, traffic
from kd_jax.launch.planning.flops import Flops
from kd_jax.launch.sharding import check_activations
from kd_jax.launch.stages import Program

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Account(NamedTuple):
    """Bytes of a chip: temporaries, written (all outputs), outputs (those that reuse no argument)
    and peak (arguments included); None, as traffic, where the program is too large.

    refusal: what the compiler says then. needed: bytes of all that it wanted, or of the
    temporaries alone, as `whole` says; None where it does not say.
    """

    flops: Flops
    seconds: float
    temporaries: int | None = None
    written: int | None = None
    outputs: int | None = None
    peak: int | None = None
    traffic: Traffic | None = None
    refusal: str | None = None
    needed: float | None = None
    whole: bool = True


class Compiler:
    """Compiles for one platform; programs that are the same to the letter are compiled once."""

    def __init__(self, platform: str):
        self._platform = platform
        self._found: dict[str, Account] = {}

    def account(self, program: Program, work: Callable[[], Flops] | None = None) -> Account:
        """Of a program, traced from its arguments' shapes.

        work: counts its FLOPs; by default they are counted as it is placed, kernels of the
        platform included. UserError for activations that the mesh does not divide.
        """
        traced = program.jitted.trace(*program.arguments)
        check_activations(traced.jaxpr)
        lowered = traced.lower(lowering_platforms=(self._platform,))
        key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if key not in self._found:
            counted = flops.count(traced.jaxpr) if work is None else work()
            self._found[key] = compile_(lowered, self._platform, counted)
        return self._found[key]


def compile_(lowered: Any, platform: str, counted: Flops) -> Account:
    """The account of a lowered program; errors but the lack of memory come out as they are."""
    started = time.perf_counter()
    try:
        stats, text = _compile(lowered, platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(str(error), counted, time.perf_counter() - started)
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes
    return Account(
        counted,
        time.perf_counter() - started,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        outputs,
        # The CPU's peak leaves the temporaries out, a TPU's has the arguments in host memory in it.
        total
        if platform == "cpu"
        else stats.peak_memory_in_bytes - stats.host_argument_size_in_bytes,
        traffic(text),
    )


def _compile(lowered: Any, platform: str) -> tuple[Any, str]:
    """(memory_analysis(), the text of the compiled program)."""
    if platform == "cpu":
        compiled = lowered.compile()
        return compiled.memory_analysis(), compiled.as_text()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A persistent cache holds such programs and cannot read them back: no device to load them.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        # jaxlib cannot read what newer chips run on their sparse cores, so as_text() fails on some
        # programs; libtpu writes the same text itself.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        text = min(Path(folder).glob("module_*.jit_*.after_optimizations.txt")).read_text()
        return compiled.memory_analysis(), text


def _refused(message: str, counted: Flops, seconds: float) -> Account:
    # libtpu says it in two ways: of a program as a whole, and of its temporaries alone.
    whole = re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w)", message)
    found = whole or re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    if found is None:
        first = message.strip().split("\n", 1)[0][:200]
        return Account(counted, seconds, refusal=first)
    needed = float(found[1][:-1]) * UNITS.get(found[1][-1], 1)
    refusal = f"needs {found[1]} of {found[2]}"
    return Account(counted, seconds, refusal=refusal, needed=needed, whole=whole is not None)
