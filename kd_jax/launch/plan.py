"""Does each stage of an experiment fit, and what bounds it? Compiled for chips that are not there.

    python -m experiments.unlearning.npo_tofu paper --plan v5p:4x4x8
    python -m kd_jax.launch.plan MODULE ... --presets paper --topologies v5e:4x4 v5p:2x2x1 \
        --json plans.json

No weight is loaded and no device is used: shapes alone are traced, under the mesh of the topology.
Memory is the compiler's account, time a roofline; never a measured run.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from kd_jax.launch import cli, run
from kd_jax.launch.artefacts import Artefact, NotPlanned, write_json
from kd_jax.launch.config import identity
from kd_jax.launch.errors import UserError
from kd_jax.launch.loop import jit_step
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.planning import advice, chips, flops, footprint, roofline
from kd_jax.launch.planning import tables as plan_tables
from kd_jax.launch.planning.chips import GIB, Chip
from kd_jax.launch.planning.compiled import Account, Compiler
from kd_jax.launch.planning.flops import Flops
from kd_jax.launch.planning.footprint import Footprint
from kd_jax.launch.planning.topologies import devices_of, parse
from kd_jax.launch.sharding import batch_sharding, on_mesh, shardings_of
from kd_jax.launch.stages import Compute, Placed, Program, Training, inner, keys, placed

Row = dict[str, Any]
Held = Mapping[str, Any]  # category of a footprint -> tree
STEP = "step"
ROOM = 0.9  # of the memory; above it only a run can tell
FITS, UNKNOWN, TOO_LARGE, NOT_PLANNED = "fits", "unknown", "does not fit", "not planned"


def of(module: ModuleType, name: str, preset: str, config: Any, topology: str) -> list[Row]:
    """The rows of an experiment: one a program of a stage, see `rows`."""
    return list(rows(module, name, preset, config, topology))


def rows(
    module: ModuleType,
    name: str,
    preset: str,
    config: Any,
    topology: str,
    *,
    done: Collection[tuple[str, str | None]] = (),
) -> Iterator[Row]:
    """A row for each program of each stage, as soon as it is compiled.

    A training has its "step", a "prepare" where it has one, and the programs that its evaluations
    name, as "evaluation/program"; a computed stage has those it names. A stage that cannot be
    planned has one row, with program None. Programs that are the same to the letter (another seed,
    another named loss of the same shapes) are compiled once.

    done: (stage, program) of rows that are not wanted.

    UserError for an unknown topology and for a mesh that does not divide.
    """
    devices = devices_of(topology)
    mesh = make_mesh(config.mesh, devices)
    chip, slices = chips.of_topology(topology), parse(topology).slices
    compiler = Compiler(mesh.devices.flat[0].platform)
    stages = run.stages_of(module, config)
    hashes = keys(stages, name, identity(config))
    planned: dict[str, Artefact] = {}
    for stage in stages:
        header = {
            "module": name,
            "preset": preset,
            "topology": topology,
            "devices": len(devices),
            "slices": slices,
            "mesh": _sizes(mesh),
            "stage": stage.name,
        }
        shapes = None
        try:
            work = stage.build({need: planned[need] for need in stage.needs})
            if isinstance(work, Training):
                found = placed(stage.name, work, mesh)
                shapes = jax.eval_shape(work.result, inner(found.state), found.frozen)
                programs, held = _programs(work, found, mesh), _held(found)
            else:
                shapes, held = work.shapes, {}
                programs = _computed(work, mesh)
            for program, part, count in programs:
                if (stage.name, program) not in done:
                    account = compiler.account(part, count)
                    sizes = footprint.of(part.arguments, held)
                    yield header | {"program": program} | _facts(account, sizes, mesh, slices, chip)
        except NotPlanned as error:
            if (stage.name, None) not in done:
                yield header | {"program": None, "verdict": NOT_PLANNED, "reason": str(error)}
        planned[stage.name] = Artefact(stage.name, hashes[stage.name], None, shapes)


Named = tuple[str, Program, Callable[[], Flops] | None]


def _programs(training: Training, found: Placed, mesh: Mesh) -> Iterator[Named]:
    """What a training runs: (name, program, how its FLOPs are counted, if not as it is placed)."""
    state, frozen, batch = found.state, found.frozen, found.batch
    if training.prepare is not None:
        rows_ = batch_sharding(mesh)
        jitted = jax.jit(on_mesh(training.prepare, mesh), out_shardings=rows_)
        arguments = (inner(state), frozen, batch)
        yield "prepare", Program(jitted, arguments), None
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows_),
            jax.eval_shape(jitted, *arguments),
        )
    jitted = jit_step(found.step, shardings_of(state), mesh)
    arguments = (state, frozen, batch)
    yield STEP, Program(jitted, arguments), lambda: flops.of(found.step, *arguments)
    for evaluation in training.evaluations:
        known = inner(state)
        for name, program in evaluation.plan(known.params, known.carry, frozen).items():
            yield f"{evaluation.name}/{name}", program, None


def _computed(work: Compute, mesh: Mesh) -> Iterator[Named]:
    return ((name, program, None) for name, program in work.plan(mesh).items())


def _held(found: Placed) -> Held:
    """What a training keeps on its chips at any moment."""
    state = found.state
    return {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "carry": (state.carry, state.step, state.key),
        "frozen": found.frozen,
    }


def _facts(account: Account, held: Footprint, mesh: Mesh, slices: int, chip: Chip | None) -> Row:
    """The part of a row that a program gives."""
    # During an evaluation the rest of the state stays where it is.
    peak = None if account.peak is None else account.peak + held.idle
    verdict, reason = _verdict(account, peak, chip)
    found = {
        "parameters": held.parameters,
        "frozen_parameters": held.frozen_parameters,
        "bytes": {
            **held.bytes,
            "temporaries": account.temporaries,
            "outputs": account.outputs,
            "peak": peak,
        },
        "host_bytes": held.host,
        "hbm": None if chip is None else chip.hbm,
        "verdict": verdict,
        "reason": reason,
        "help": [],
        "flops": account.flops.total,
        "model_flops": account.flops.model,
        "collectives": account.traffic,
        "roofline": None,
        "compile_seconds": account.seconds,
    }
    if chip is None:
        return found
    if verdict != FITS:
        temporaries = _temporaries(account, held)
        found["help"] = advice.sentences(held, temporaries, ROOM * chip.hbm, mesh.shape, slices)
    if account.traffic is not None:
        found["roofline"] = roofline.of(
            chip,
            mesh.devices.size,
            flops=account.flops.total,
            model_flops=account.flops.model,
            memory=held.arguments + (account.written or 0) + 2 * (account.temporaries or 0),
            traffic=account.traffic,
        )
    return found


def _verdict(account: Account, peak: int | None, chip: Chip | None) -> tuple[str, str]:
    if account.refusal is not None or peak is None:
        return TOO_LARGE, account.refusal or ""
    if chip is None:
        return UNKNOWN, "the memory of a device is not known"
    share = peak / chip.hbm
    reason = f"{share:.0%} of {chip.hbm / GIB:.2f} GiB"
    if share > 1:  # what the program leaves alone counts too
        return TOO_LARGE, reason
    return FITS if share <= ROOM else UNKNOWN, reason


def _temporaries(account: Account, held: Footprint) -> float:
    """As far as known: of a program that is refused, what it wanted beside its arguments."""
    if account.temporaries is not None:
        return account.temporaries
    if account.needed is None:
        return 0.0
    return max(0.0, account.needed - held.arguments) if account.whole else account.needed


def _sizes(mesh: Mesh) -> str:
    used = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    return " ".join(used) or "one device"


def show(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints tables for people, then the rows as one line of JSON."""
    plan_tables.show(found)
    print(json.dumps(list(found)))


def main(argv: Sequence[str] | None = None) -> int:
    """Plans several experiments; one that cannot be planned is said so, and passed."""
    parser = cli.Parser(prog="python -m kd_jax.launch.plan", description=__doc__)
    parser.add_argument("modules", nargs="+", help="experiment modules")
    parser.add_argument("--presets", nargs="+", default=["paper"])
    parser.add_argument("--topologies", nargs="+", default=["v5e:4x4", "v5p:2x2x1"])
    parser.add_argument(
        "--json",
        help="write rows to this file, each as it is found; those that it holds are not made "
        "again: delete it to plan anew",
    )
    try:
        arguments = parser.parse_args(argv)
        # The largest first: it decides how many simulated devices this process has.
        for topology in sorted(arguments.topologies, key=_cpus, reverse=True):
            devices_of(topology)
        file = None if arguments.json is None else Path(arguments.json)
        kept = _read(file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    failed = False
    for name in arguments.modules:
        for preset in arguments.presets:
            for topology in arguments.topologies:
                place = {"module": name, "preset": preset, "topology": topology}
                try:
                    with run.one_line_for_files():
                        _add(kept, place, file)
                except UserError as error:
                    print(f"error: {name} {preset} on {topology}: {error}", file=sys.stderr)
                    failed = True
                plan_tables.show([row for row in kept if place.items() <= row.items()])
    return 2 if failed else 0


def _cpus(topology: str) -> int:
    kind, shape, _ = parse(topology)
    return int(shape) if kind == "cpu" else 0


def _add(kept: list[Row], place: Mapping[str, str], file: Path | None) -> None:
    """Plans one experiment and appends its rows, which a kill then cannot take back."""
    module = cli.load(place["module"])
    config = cli.preset(module, place["preset"])
    done = {(row["stage"], row["program"]) for row in kept if place.items() <= row.items()}
    new = rows(module, place["module"], place["preset"], config, place["topology"], done=done)
    for row in new:
        kept.append(row)
        if file is not None:
            write_json(file, kept)


def _read(file: Path | None) -> list[Row]:
    if file is None or not file.exists():
        return []
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"--json {file}: not a file of plans ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
