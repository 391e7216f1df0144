"""Does each training step of an experiment fit? Compiled for a topology that need not be there.

    python -m experiments.unlearning.npo_tofu paper --plan v5p:2x2x1
    python -m kd_jax.launch.plan MODULE ... --preset paper --topologies v5e:4x4 v5p:2x2x1

No weight is loaded and no device is used: shapes alone are traced, under the mesh of the topology.
What is said is the compiler's account, never a measured run.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax

from kd_jax.launch import cli, run, tables
from kd_jax.launch.artefacts import Artefact, NotPlanned, write_json
from kd_jax.launch.claims import Table
from kd_jax.launch.config import identity
from kd_jax.launch.errors import UserError
from kd_jax.launch.loop import jit_step
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.sharding import check_activations, shardings_of
from kd_jax.launch.stages import Training, inner, keys, placed

# GiB a device, as the compiler of libtpu 0.0.51 says when a program is too large.
HBM = {"v5e": 15.75, "v5p": 95.73, "v6e": 31.24}
ROOM = 0.9  # of the memory; above it only a run can tell
FITS, UNKNOWN, TOO_LARGE, NOT_PLANNED = "fits", "unknown", "does not fit", "not planned"
GIB = 2**30


def of(
    module: ModuleType, name: str, preset: str, config: Any, topology: str
) -> list[dict[str, Any]]:
    """One row a stage: bytes a device and a verdict.

    Stages that train alike (another seed, another named loss of the same shapes) are compiled once
    if their programs are the same to the letter. UserError for an unknown topology and for a mesh
    that does not divide.
    """
    devices = devices_of(topology)
    mesh = make_mesh(config.mesh, devices)
    stages = run.stages_of(module, config)
    hashes = keys(stages, name, identity(config))
    planned: dict[str, Artefact] = {}
    compiled: dict[str, dict[str, Any]] = {}
    rows = []
    for stage in stages:
        row = {
            "module": name,
            "preset": preset,
            "topology": topology,
            "devices": len(devices),
            "mesh": "x".join(map(str, mesh.devices.shape)),
            "stage": stage.name,
        }
        shapes = None
        try:
            work = stage.build({need: planned[need] for need in stage.needs})
            if isinstance(work, Training):
                found = placed(stage.name, work, mesh)
                shapes = jax.eval_shape(work.result, inner(found.state), found.frozen)
                rows.append(row | _memory(found, mesh, topology, compiled))
            else:
                shapes = work.shapes
        except NotPlanned as error:
            rows.append(row | {"verdict": NOT_PLANNED, "reason": str(error)})
        planned[stage.name] = Artefact(stage.name, hashes[stage.name], None, shapes)
    return rows


def devices_of(topology: str) -> list[Any]:
    """Devices of "cpu:8", simulated, or of a TPU topology "v5e:4x4", described.

    UserError for a name that is not known, and where libtpu is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu" and shape.isdecimal() and int(shape) > 0:
        return _cpus(int(shape))
    if not re.fullmatch(r"\w+:\d+(x\d+)+", topology) or kind == "cpu":
        raise UserError(f"--plan: got {topology}, takes cpu:8, or TPUs such as v5e:4x4, v5p:2x2x1")
    # Before libtpu is loaded: the first two keep it from asking for a TPU, the third lets two
    # plans be made at the same time.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # A v4 chip is one device, as its pods show it.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except Exception as error:  # jax raises several kinds, none for this alone
        if not _has_libtpu():
            raise UserError(
                f"--plan {topology}: libtpu is not installed: pip install 'kd_jax[tpu]'"
            ) from None
        raise UserError(f"--plan: unknown topology {topology} ({_first_line(error)})") from None


def _cpus(count: int) -> list[Any]:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend has started; it may have enough
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--plan cpu:{count}: this process has {len(devices)} simulated devices")
    return devices[:count]


def _has_libtpu() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None


def _memory(
    found: Any, mesh: Any, topology: str, compiled: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Lowers and compiles the step; `compiled` holds what was found for each program."""
    jitted = jit_step(found.step, shardings_of(found.state), mesh)
    traced = jitted.trace(found.state, found.frozen, found.batch)
    check_activations(traced.jaxpr)
    lowered = traced.lower(lowering_platforms=(mesh.devices.flat[0].platform,))
    program = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    if program not in compiled:
        compiled[program] = _compile(lowered, topology)
    return compiled[program]


def _compile(lowered: Any, topology: str) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        stats = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # libtpu says it in two ways: of a program as a whole, and of its temporaries alone.
        used = re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w)", str(error)) or re.search(
            r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error)
        )
        reason = f"needs {used[1]} of {used[2]}" if used else _first_line(error)
        return {"verdict": TOO_LARGE, "reason": reason}
    kind = topology.split(":")[0]
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )
    # The CPU's peak leaves the temporaries out.
    peak = total if kind == "cpu" else stats.peak_memory_in_bytes
    row = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "reused": stats.alias_size_in_bytes,
        "peak": peak,
        "compile_seconds": time.perf_counter() - started,
    }
    if kind not in HBM:
        return row | {"verdict": UNKNOWN, "reason": "the memory of a device is not known"}
    share = peak / (HBM[kind] * GIB)
    reason = f"{share:.0%} of {HBM[kind]} GiB"
    return row | {"verdict": FITS if share <= ROOM else UNKNOWN, "reason": reason}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table in GiB a device, and the rows as a line of JSON."""
    sizes = ("arguments", "temporaries", "outputs", "reused", "peak")
    shown = [
        {"stage": row["stage"], "topology": row["topology"], "mesh": row["mesh"]}
        | {size: row[size] / GIB if size in row else None for size in sizes}
        | {"verdict": row["verdict"], "why": row["reason"]}
        for row in rows
    ]
    head = f"{rows[0]['module']} {rows[0]['preset']}, GiB a device" if rows else "No stage trains"
    tables.show(Table(head, shown))
    print(json.dumps(list(rows)))


def main(argv: Sequence[str] | None = None) -> int:
    """Plans several experiments; an experiment that cannot be planned is said so, and passed."""
    parser = cli.Parser(prog="python -m kd_jax.launch.plan", description=__doc__)
    parser.add_argument("modules", nargs="+", help="experiment modules")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--topologies", nargs="+", default=["v5e:4x4", "v5p:2x2x1"])
    parser.add_argument("--json", help="write all rows to this file")
    try:
        arguments = parser.parse_args(argv)
        for topology in arguments.topologies:
            devices_of(topology)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows: list[dict[str, Any]] = []
    failed = False
    for name in arguments.modules:
        for topology in arguments.topologies:
            try:
                with run.one_line_for_files():
                    module = cli.load(name)
                    config = cli.preset(module, arguments.preset)
                    new = of(module, name, arguments.preset, config, topology)
            except UserError as error:
                print(f"error: {name} on {topology}: {error}", file=sys.stderr)
                failed = True
                continue
            show(new)
            rows += new
    if arguments.json:
        from pathlib import Path

        write_json(Path(arguments.json), rows)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
