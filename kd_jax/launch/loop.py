"""The fit loop: a function of a step, a state, what is frozen, batches and hooks."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from kd_jax.launch import preemption
from kd_jax.launch.beat import beat
from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import Preempted
from kd_jax.launch.goodput import Events
from kd_jax.launch.meter import Meter
from kd_jax.launch.prefetch import Batches, Prefetch
from kd_jax.launch.profile import Profile
from kd_jax.launch.progress import Progress
from kd_jax.launch.sharding import batch_sharding, check_activations, on_mesh, replicated
from kd_jax.launch.writers import Writer
from kd_jax.trees import flatten
from kd_jax.types import Batch, Frozen, TrainState, TrainStep

PyTree = Any
Prepare = Callable[[TrainState, Frozen, Batch], Batch]


class Hook(NamedTuple):
    """run(step, state, frozen), once `step` steps are finished and step % every == 0.

    It must not keep the state: the next step gives its memory away. Numbers that it returns,
    {name: value}, join the metrics that `Checkpoints(best=...)` ranks by.
    at_start: also before the first step of a fresh run, with step 0. at_end: also after the last.
    """

    every: int
    run: Callable[[int, TrainState, Frozen], Mapping[str, float] | None]
    at_start: bool = False
    at_end: bool = True


def jit_step(step: TrainStep, shardings: TrainState, mesh: Mesh) -> Any:
    """(state, frozen, batch) -> (state, metrics), jitted; the state's memory is reused.

    It takes `.lower` on ShapeDtypeStructs with shardings too, for a plan.
    """
    return jax.jit(
        on_mesh(step, mesh),
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def fit(
    step: TrainStep,
    state: TrainState,
    frozen: Frozen,
    batches: Batches,
    *,
    steps: int,
    mesh: Mesh,
    shardings: TrainState,
    batch_size: int,
    hooks: Sequence[Hook] = (),
    prepare: Prepare | None = None,
    prepare_every: int = 1,
    checkpoints: Checkpoints | None = None,
    writer: Writer | None = None,
    log_every: int = 10,
    progress: Progress | None = None,
    profile: Profile | None = None,
    flops: float | None = None,
    peak: float | None = None,
    events: Events | None = None,
) -> TrainState:
    """Takes the state from state.step finished steps to `steps`, and returns it.

    state: consumed; fresh from `init_state` or from `Checkpoints.restore_latest`.
    batches(draw, rows): this process's rows of global batch number `draw`, a pure function, so
        that the step alone resumes it; step k (from 0) trains on draw k // prepare_every.
    prepare(state, frozen, batch) -> batch: jitted, on each draw; what it returns is trained on for
        `prepare_every` steps. Checkpoints are saved between holds only: checkpoints.every must be
        a multiple of prepare_every, and a preemption is obeyed at the end of the hold.
    After a step come its hooks, then its checkpoint: what a hook has not done yet is done again
        after a kill. The last step is always saved.
    The step's metrics are f32 scalars by name, "loss" among them.
    writer: gets them and the speed (see `Meter`) each `log_every` steps and after the last; they
        are fetched one interval late, so that the device never waits for the host.
    flops: model FLOPs of a step, and peak: FLOP/s of the chips, both of the whole mesh; with them
        the writer gets the utilisation.
    profile: traces some of the steps. events: gets what `goodput` is reckoned from.

    Raises NonFinite, naming the step, when the loss (or what `guard_non_finite` watches) is not
    finite: at the latest two intervals later, and before any hook or checkpoint sees that state.
    Raises Preempted after SIGTERM, saved. Errors of `batches` come out as they are.
    """
    if prepare is None and prepare_every != 1:
        raise ValueError(f"prepare_every: got {prepare_every}, takes 1 without prepare")
    if prepare_every < 1 or log_every < 1:
        raise ValueError(f"prepare_every {prepare_every}, log_every {log_every}: take at least 1")
    if checkpoints is not None and checkpoints.every % prepare_every:
        raise ValueError(
            f"checkpoints.every: got {checkpoints.every}, takes a multiple of prepare_every, "
            f"{prepare_every}"
        )
    start = int(state.step)
    if start >= steps:
        return state
    if start % prepare_every:
        raise ValueError(f"state.step: got {start}, takes a multiple of {prepare_every}")
    _check_disjoint(state, frozen)
    sharding = batch_sharding(mesh)
    feed = Prefetch(
        batches, sharding, batch_size, first=start // prepare_every, last=-(-steps // prepare_every)
    )
    run = jit_step(step, shardings, mesh)
    prepared = prepare and jax.jit(
        on_mesh(prepare, mesh),
        in_shardings=(shardings, None, sharding),
        out_shardings=sharding,
    )
    meter = Meter(
        writer,
        progress,
        start=start,
        log_every=log_every,
        batch_size=batch_size,
        flops=flops,
        peak=peak,
        events=events,
    )
    during = _During(events)
    batch: Any = None
    asked, done, begin = False, start, 0.0
    with contextlib.ExitStack() as stack:
        # However the loop ends, a trace is ended, and what is being saved is finished.
        stack.callback(lambda: during.note("stop", done))
        if checkpoints is not None:
            stack.callback(lambda: during("save", done, checkpoints.wait))
        during.note("ready", start)
        for hook in hooks:
            if start == 0 and hook.at_start:
                during("evaluation", 0, hook.run, 0, state, frozen)
        preempted = stack.enter_context(preemption.watch())
        stack.enter_context(feed)
        if profile is not None:
            stack.callback(profile.stop)
        for done in range(start + 1, steps + 1):
            if profile is not None:
                meter.exclude(profile.before(done))
            if (done - 1) % prepare_every == 0:
                batch, begin = meter.draw(feed), time.perf_counter()
                if prepared is not None:
                    batch = prepared(state, frozen, batch)
            if done == start + 1:
                check_activations(run.trace(state, frozen, batch).jaxpr)
            state, metrics = run(state, frozen, batch)
            if done == start + 1:
                compiling = time.perf_counter() - begin
                meter.compiled(compiling, batch)
                during.note("compiled", start, seconds=compiling)
            meter.add(done, metrics)
            beat()
            if profile is not None:
                meter.exclude(profile.after(done, metrics))
            last = done == steps
            due = [hook for hook in hooks if done % hook.every == 0 or (last and hook.at_end)]
            # Processes agree on the request at one step, and only there: it is kept.
            asked = asked or (not last and preempted())
            stop = asked and done % prepare_every == 0 and not last
            save = last or stop or (checkpoints is not None and done % checkpoints.every == 0)
            if due or save:
                numbers = meter.catch_up(last=last)
                for hook in due:
                    numbers |= during("evaluation", done, hook.run, done, state, frozen) or {}
                if checkpoints is not None and save:
                    end = last or stop
                    during("save", done, checkpoints.save, done, state, metrics=numbers, wait=end)
                meter.restart()
            if stop:
                raise Preempted(done, saved=checkpoints is not None)
    return state


class _During:
    """Writes events, and those around a call: NAME_begin and NAME_end."""

    def __init__(self, events: Events | None):
        self._events = events

    def note(self, event: str, step: int, **more: Any) -> None:
        if self._events is not None:
            self._events.add(event, step, **more)

    def __call__(
        self, name: str, step: int, call: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        self.note(f"{name}_begin", step)
        found = call(*args, **more)
        self.note(f"{name}_end", step)
        return found


def _check_disjoint(state: TrainState, frozen: Frozen) -> None:
    """ValueError where an array is in both: the step would give its memory away."""
    owned = {id(leaf) for leaf in jax.tree.leaves(state)}
    shared = [path for path, leaf in flatten(frozen).items() if id(leaf) in owned]
    if shared:
        raise ValueError(
            f"frozen: {', '.join(shared)} is the same array as in the state, which is donated; "
            "make a copy"
        )
