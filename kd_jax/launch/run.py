"""Runs an experiment: its stages in order, each resumed or read where it can be, then its report.

An experiment module ends with

    if __name__ == "__main__":
        raise SystemExit(main(__spec__.name))
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from kd_jax.launch import (
    artefacts,
    cli,
    environment,
    folders,
    goodput,
    preemption,
    results,
    runtime,
    tables,
)
from kd_jax.launch.artefacts import Artefact, write_json
from kd_jax.launch.beat import beat
from kd_jax.launch.claims import Table
from kd_jax.launch.config import identity
from kd_jax.launch.errors import NonFinite, Preempted, StorageFailed, UserError
from kd_jax.launch.execute import Run, carry_out
from kd_jax.launch.goodput import Events
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Stage, depends_on, keys

_STARTED = time.time()  # what comes before it, Python's own start, is a moment


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment module `name`; returns the exit code.

    0; 2 for what the person can put right, said in one line; 75 when asked to stop, saved; 1 when
    the loss is not finite; 130 for Ctrl-C. All other errors come with their traceback. One process
    of several that fails does not wait for the others, which are then told by jax's runtime
    (`runtime.init`) and end with 134.
    """
    argv = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _main(name, argv))


def exit_code(f: Callable[[], None]) -> int:
    """Calls f and turns what it raises into what `main` promises."""
    try:
        with one_line_for_files():
            f()
    except (UserError, NonFinite, StorageFailed, Preempted) as error:
        stage = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        print(f"error: {stage}{error}", file=sys.stderr)
        if not isinstance(error, Preempted):  # which all processes are at once
            runtime.leave(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from the last save", file=sys.stderr)
        runtime.leave(130)
        return 130
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            runtime.leave(1)
        raise
    return 0


def _main(name: str, argv: Sequence[str]) -> None:
    module = cli.load(name)
    command = cli.parse(module, name, argv)
    if command.plan is not None:
        from kd_jax.launch import plan

        plan.show(plan.of(module, name, command.preset, command.config, command.plan))
        return
    whole = identity(command.config)
    folder, others = folders.chosen(name, command.preset, whole, command.workdir)
    if command.list_stages:
        tables.show(_overview(stages_of(module, command.config), name, whole, folder, others))
        return
    runtime.init()
    execute(
        module,
        name,
        command.preset,
        command.config,
        folder,
        others=others,
        command=environment.command_line(name, argv),
        profile=command.profile,
    )


def execute(
    module: ModuleType,
    name: str,
    preset: str,
    config: Any,
    folder: str | Path,
    *,
    others: Sequence[Path] = (),
    command: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Runs an experiment in `folder`; returns what results.json holds ({} but in one process).

    others: folders of other runs, whose finished artefacts are read where their hash is right.
    profile: the first and the last step of each training to trace.
    """
    folder = Path(folder).absolute()
    stages = stages_of(module, config)
    whole = identity(config)
    hashes = keys(stages, name, whole)
    mesh = make_mesh(config.mesh)
    header = {"module": name, "preset": preset, "hash": folders.run_hash(name, whole)}
    title = f"{name}-{preset}-{header['hash']}"
    found: dict[str, Artefact] = {}

    def describe() -> None:
        write_json(folder / "config.json", header | {"identity": whole, "config": config})
        write_json(folder / "environment.json", environment.describe(command))

    with (
        preemption.watch() as asked,
        folders.opened(folder, name, whole),
        contextlib.closing(Events(folder / "events.jsonl", began=_STARTED)) as events,
    ):
        runtime.on_main(describe)
        for number, stage in enumerate(stages, 1):
            beat()
            say = _Say(f"stage {number}/{len(stages)} {stage.name}")
            artefact = artefacts.find(stage.name, hashes[stage.name], [folder, *others])
            if artefact is not None:
                own = artefact.run == folder
                artefacts.tidy(artefacts.place(folder, stage.name, hashes[stage.name]))
                say("finished before" if own else f"finished before in {artefact.run}")
            else:
                about = {
                    "depends": depends_on(stage, whole),
                    "needs": {need: hashes[need] for need in stage.needs},
                }
                with _in_stage(stage.name):
                    artefact = carry_out(
                        Run(folder, mesh, config, title, say, events, profile),
                        stage.name,
                        stage.build({need: found[need] for need in stage.needs}),
                        hashes[stage.name],
                        about,
                    )
            found[stage.name] = artefact
            # Trainings stop by themselves; a request during a Compute is obeyed after it.
            if asked() and number < len(stages):
                raise Preempted(0, saved=True)
        if hasattr(module, "export"):
            module.export(config, dict(found), folder)
        data = runtime.on_main(lambda: results.conclude(module, config, found, folder, header))
        runtime.on_main(lambda: _say_goodput(folder))
    return data or {}


def stages_of(module: ModuleType, config: Any) -> tuple[Stage, ...]:
    """UserError for values of the config that do not go together."""
    try:
        return tuple(module.stages(config))
    except ValueError as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def one_line_for_files() -> Iterator[None]:
    """A file that is missing or cannot be written is for the person to put right."""
    try:
        yield
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise UserError(" ".join(text.split())) from error


def _say_goodput(folder: Path) -> None:
    with (folder / "events.jsonl").open(encoding="utf-8") as lines:
        found = goodput.goodput(lines)
    if found.goodput:  # it trained
        print(goodput.summary(found))


class _Say:
    """Prints a line on the first process."""

    def __init__(self, head: str):
        self._head = head

    def __call__(self, what: str) -> None:
        if runtime.is_main():
            print(f"{self._head}: {what}", flush=True)


@contextlib.contextmanager
def _in_stage(name: str) -> Iterator[None]:
    try:
        yield
    except (UserError, NonFinite, StorageFailed, Preempted) as error:
        if not str(error).startswith("stage "):
            error.add_note(f"stage {name}")
        raise


def _overview(
    stages: Sequence[Stage],
    name: str,
    whole: Mapping[str, Any],
    folder: Path,
    others: Sequence[Path],
) -> Table:
    rows = []
    for stage, hash in zip(stages, keys(stages, name, whole).values(), strict=True):
        state = "to do"
        if artefacts.find(stage.name, hash, [folder, *others]) is not None:
            state = "finished"
        elif artefacts.place(folder, stage.name, hash).partial.exists():
            state = "under way"
        needs = ", ".join(stage.needs) or None
        rows.append({"stage": stage.name, "state": state, "needs": needs})
    return Table(f"Stages in {folder}", rows)
