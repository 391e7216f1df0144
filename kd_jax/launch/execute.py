"""Carries out one stage: born sharded or resumed, trained, evaluated, kept as an artefact."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kd_jax.launch import artefacts, rounds, runtime
from kd_jax.launch.artefacts import Artefact, Place, Points
from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.config import Settings
from kd_jax.launch.goodput import Events
from kd_jax.launch.loop import Hook, fit
from kd_jax.launch.meter import MEASURED
from kd_jax.launch.planning import chips, flops
from kd_jax.launch.profile import Profile
from kd_jax.launch.progress import Progress
from kd_jax.launch.sharding import on_mesh, shardings_of
from kd_jax.launch.stages import Compute, Evaluation, Placed, Training, inner, placed
from kd_jax.launch.weights import init_state
from kd_jax.launch.writers import Jsonl, TensorBoard, Wandb, Writers
from kd_jax.types import Frozen, TrainState

PyTree = Any


class Run(NamedTuple):
    """What the stages of a run share. title: a name for other people's dashboards. profile: the
    first and the last step of each training to trace.
    """

    folder: Path
    mesh: Mesh
    settings: Settings
    title: str
    say: Callable[[str], None]
    events: Events
    profile: tuple[int, int] | None = None


class Outcome(NamedTuple):
    tree: PyTree | None
    values: Mapping[str, Any]
    history: list[dict[str, Any]]
    rows: Mapping[str, np.ndarray]
    speed: Mapping[str, float] = {}


def carry_out(
    run: Run, name: str, work: Training | Compute, hash: str, identity: Mapping[str, Any]
) -> Artefact:
    """Runs a stage to its end. identity: what its hash is of, as plain data."""
    where = artefacts.place(run.folder, name, hash)
    started = time.perf_counter()
    if isinstance(work, Training):
        run.events.begin(name)
        outcome = _train(run, name, work, where, identity)
    else:
        run.say("computing")
        run.events.add("evaluation_begin")
        outcome = _compute(work, where.files)
        run.events.add("evaluation_end")
    about = {
        "name": name,
        "hash": hash,
        **identity,
        "values": outcome.values,
        # Of the process that finished it: a resumed stage took longer in all.
        "seconds": time.perf_counter() - started,
        # The last measured: tokens_per_second, mfu, ... (see `meter.Meter`).
        "speed": outcome.speed,
    }
    return artefacts.finish(where, about, outcome.tree, outcome.history, outcome.rows)


def _compute(work: Compute, folder: Path) -> Outcome:
    tree, found = work.run()
    if work.files is not None:
        runtime.on_main(lambda: _emptied(folder))
        found = {**found, **work.files(folder)}
    rows = {k: np.asarray(v) for k, v in found.items() if _is_array(v)}
    return Outcome(tree, {k: v for k, v in found.items() if k not in rows}, [], rows)


def _emptied(folder: Path) -> None:
    """Of what a stage that was killed left."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and value.ndim > 0


def _train(
    run: Run, name: str, training: Training, where: Place, identity: Mapping[str, Any]
) -> Outcome:
    plan = placed(name, training, run.mesh)
    # Checkpoints are saved between two draws of `prepare`.
    hold = training.prepare_every
    every = -(-run.settings.checkpoint_every // hold) * hold
    with Checkpoints(where.partial / "checkpoints", identity, every=every) as checkpoints:
        state = checkpoints.restore_latest(plan.state)
        frozen = training.frozen.make(plan.frozen) if training.frozen else {}
        # Before step 0, so that the lines of a start that saved nothing are not written twice.
        start = -1 if state is None else int(state.step)
        if state is None and training.start is not None:
            state = rounds.resumed(training.start, plan.state)
            run.say(f"training, steps {int(state.step)} to {training.steps}")
        elif state is None:
            key = jax.random.key(training.seed)
            state = init_state(plan.step, training.weights, frozen, training.batch, key, plan.state)
            run.say(f"training, {training.steps} steps")
        else:
            run.say(f"resumed at step {start} of {training.steps}")
        points = Points(where.partial / "evaluations")
        speed = _Speed()
        writer = _writers(run, name, start, speed)
        trace = run.profile and Profile(run.folder / "profile" / name, *run.profile)
        try:
            with Progress(name, training.steps) as progress:
                state = fit(
                    plan.step,
                    state,
                    frozen,
                    training.batches,
                    steps=training.steps,
                    mesh=run.mesh,
                    shardings=shardings_of(plan.state),
                    batch_size=training.batch_size,
                    hooks=[_hook(e, points, writer) for e in training.evaluations],
                    prepare=_on_inner(training.prepare),
                    prepare_every=hold,
                    checkpoints=checkpoints,
                    writer=writer,
                    log_every=run.settings.log_every,
                    progress=progress,
                    profile=trace,
                    **_peak(plan, run.mesh),
                    events=run.events,
                )
        finally:
            writer.close()
        tree = jax.jit(on_mesh(training.result, run.mesh))(inner(state), frozen)
        history, rows = points.collect()
    last = {k: v for k, v in history[-1].items() if k != "step"} if history else {}
    return Outcome(tree, last | {"steps": training.steps}, history, rows, speed.values)


def _peak(plan: Placed, mesh: Mesh) -> dict[str, float]:
    """`fit`'s flops and peak where the chip is known: one more trace, beside a compilation."""
    chip = chips.of_device(mesh.devices.flat[0])
    if chip is None:
        return {}
    counted = flops.of(plan.step, plan.state, plan.frozen, plan.batch)
    return {"flops": counted.model, "peak": chip.flops * mesh.size}


def _hook(evaluation: Evaluation, points: Points, writer: Writers) -> Hook:
    """The evaluation as a hook of the loop; a point made before a kill is read, not made again."""

    def run(step: int, state: TrainState, frozen: Frozen) -> dict[str, float]:
        if points.has(step, evaluation.name):
            numbers = points.read(step, evaluation.name)
        else:
            found = evaluation.run(state.params, inner(state).carry, frozen)
            numbers = points.add(step, evaluation.name, found)
        numbers = {f"{evaluation.name}/{key}": value for key, value in numbers.items()}
        writer.scalars(step, numbers)
        return numbers

    return Hook(evaluation.every, run, at_start=True, at_end=True)


def _on_inner(prepare: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if prepare is None:
        return None
    return lambda state, frozen, batch: prepare(inner(state), frozen, batch)


class _Speed:
    """A writer that keeps the newest of what the clock says."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.values |= {name: values[name] for name in MEASURED if name in values}

    def close(self) -> None:
        pass


def _writers(run: Run, name: str, start: int, speed: _Speed) -> Writers:
    if not runtime.is_main():
        return Writers()
    writers: list[Any] = [
        speed,
        Jsonl(run.folder / "metrics.jsonl", start=start, tags={"stage": name}),
        TensorBoard(run.folder / "tensorboard", start=start, prefix=f"{name}/"),
    ]
    if run.settings.wandb is not None:
        # A run of its own for each stage: their steps begin at 0 again.
        writers.append(
            Wandb(
                project=run.settings.wandb,
                group=run.title,
                name=f"{run.title}/{name}",
                id=f"{run.title}-{name}".replace("/", "-"),
                resume="allow",
                dir=str(run.folder),
            )
        )
    return Writers(*writers)
