"""Runs an experiment: its stages in order, each resumed or read where it can be, then its report.

An experiment module ends with

    if __name__ == "__main__":
        raise SystemExit(main(__spec__.name))
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_jax.launch import (
    artefacts,
    cli,
    environment,
    folders,
    preemption,
    results,
    runtime,
    tables,
)
from kd_jax.launch.artefacts import Artefact, write_json
from kd_jax.launch.claims import Table
from kd_jax.launch.config import identity
from kd_jax.launch.errors import NonFinite, Preempted, UserError
from kd_jax.launch.execute import Run, carry_out
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Stage, depends_on, keys


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment module `name`; returns the exit code.

    0; 2 for what the person can put right, said in one line; 75 when asked to stop, saved; 1 when
    the loss is not finite; 130 for Ctrl-C. All other errors come with their traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with one_line_for_files():
            _main(name, argv)
    except (UserError, NonFinite, Preempted) as error:
        stage = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        print(f"error: {stage}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from the last save", file=sys.stderr)
        return 130
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
) -> dict[str, Any]:
    """Runs an experiment in `folder`; returns what results.json holds ({} but in one process).

    others: folders of other runs, whose finished artefacts are read where their hash is right.
    """
    folder = Path(folder).absolute()
    stages = stages_of(module, config)
    whole = identity(config)
    hashes = keys(stages, name, whole)
    mesh = make_mesh(config.mesh)
    header = {"module": name, "preset": preset, "hash": folders.run_hash(name, whole)}
    title = f"{name}-{preset}-{header['hash']}"
    found: dict[str, Artefact] = {}
    with preemption.watch() as asked, folders.opened(folder, name, whole):
        if runtime.is_main():
            write_json(folder / "config.json", header | {"identity": whole, "config": config})
            write_json(folder / "environment.json", environment.describe(command))
        runtime.barrier("run folder")
        for number, stage in enumerate(stages, 1):
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
                        Run(folder, mesh, config, title, say),
                        stage.name,
                        stage.build({need: found[need] for need in stage.needs}),
                        hashes[stage.name],
                        about,
                    )
            found[stage.name] = artefact
            # Trainings stop by themselves; a request during a Compute is obeyed after it. (With
            # several processes the request may be asked for by steps alone: `fit` does.)
            if runtime.is_alone() and asked(0) and number < len(stages):
                raise Preempted(0, saved=True)
        data = {}
        if runtime.is_main():
            data = results.conclude(module, config, found, folder, header)
        runtime.barrier("results")
    return data


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
    except (UserError, NonFinite, Preempted) as error:
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
