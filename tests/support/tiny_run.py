"""A run small enough to kill: a sharded two-layer model with noise from the step's key, EMA and
AdamW, trained through the fit loop. As a script it is one process of a run (see `main`).
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.launch import runtime
from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import NonFinite, Preempted
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.loop import Hook, fit
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import replicated, shardings_of
from kd_jax.launch.weights import Weights, abstract_state, from_init, init_state
from kd_jax.launch.writers import Jsonl
from kd_jax.steps import guard_non_finite, make_eval_step, make_train_step, with_ema
from kd_jax.types import Objective, Output, weighted_sum

IN, HIDDEN, OUT, ROWS = 8, 16, 4, 16
RULES = (
    ("layers/first", ("embed", "mlp")),
    ("layers/second", ("mlp", None)),
    ("bias", (None,)),
)


def init_params(phase):
    """No random numbers: they take longer to compile than all the rest."""
    first = jnp.sin(phase + jnp.arange(IN * HIDDEN, dtype=jnp.float32) ** 2) / 3
    second = jnp.cos(phase + jnp.arange(HIDDEN * OUT, dtype=jnp.float32) ** 2) / 4
    return {
        "layers": {"first": first.reshape(IN, HIDDEN), "second": second.reshape(HIDDEN, OUT)},
        "bias": jnp.zeros(OUT),
    }


def _loss(params, carry, frozen, batch, ctx):
    from flax import linen as nn

    model = params["model"]
    hidden = jnp.tanh(batch["inputs"] @ model["layers"]["first"])
    hidden = nn.with_logical_constraint(hidden, ("batch", "mlp"))
    if ctx.train:
        hidden = hidden + 0.2 * jax.random.uniform(ctx.key, hidden.shape)
    out = hidden @ model["layers"]["second"] + model["bias"][None]
    error = jnp.mean((out - batch["targets"]) ** 2, -1)
    size = weighted_sum(jnp.abs(out).mean(-1), batch["weights"])
    return Output(
        {"error": weighted_sum(error, batch["weights"])}, {"size": size}, {"error": error}
    )


OBJECTIVE = Objective(lambda key, params, frozen, batch: ({}, {}), _loss)
EVAL_STEP = make_eval_step(OBJECTIVE)


def train_step(guard=True):
    schedule = optax.linear_schedule(0.0, 0.01, 10)
    step = with_ema(make_train_step(OBJECTIVE, optax.adamw(schedule)), 0.9)
    return guard_non_finite(step) if guard else step


def batches(step, rows):
    """Fresh data for each step; rows of the global batch."""
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(ROWS, IN)).astype(np.float32)
    y = np.sin(x[:, :OUT]) + 0.1 * rng.normal(size=(ROWS, OUT)).astype(np.float32)
    batch = {"inputs": x, "targets": y.astype(np.float32)}
    batch |= {"weights": np.ones(ROWS, np.float32), "index": np.arange(ROWS, dtype=np.int32)}
    return {name: value[rows] for name, value in batch.items()}


BATCH = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches(0, slice(0, ROWS)))


def examples(count=21):
    """An evaluation set that no batch size here divides."""
    whole = [batches(100 + i, slice(0, ROWS)) for i in range(2)]
    data = {name: np.concatenate([w[name] for w in whole])[:count] for name in whole[0]}
    return data | {"index": np.arange(count, dtype=np.int32)}


def weights() -> Weights:
    return from_init(init_params, 1.0)


def start(step, mesh, checkpoints=None):
    """(state, abstract): restored or fresh."""
    abstract = abstract_state(step, weights(), {}, BATCH, rules=RULES, mesh=mesh)
    state = checkpoints.restore_latest(abstract) if checkpoints else None
    if state is None:
        state = init_state(step, weights(), {}, BATCH, jax.random.key(2), abstract)
    return state, abstract


def train(mesh, *, steps, step=None, checkpoints=None, **settings):
    step = step or train_step()
    state, abstract = start(step, mesh, checkpoints)
    settings = {"batches": batches, "batch_size": ROWS} | settings
    feed = settings.pop("batches")
    return fit(
        step,
        state,
        {},
        feed,
        steps=steps,
        mesh=mesh,
        shardings=shardings_of(abstract),
        checkpoints=checkpoints,
        **settings,
    )


def to_numpy(tree, mesh):
    """Every leaf whole, as numpy, keys as their data; in every process."""
    tree = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return jax.device_get(jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree))


def values_of(tree, mesh):
    from kd_jax.trees import flatten

    return flatten(to_numpy(tree, mesh))


def hold(state, frozen, batch):
    """A prepare that depends on the parameters: inputs moved along them."""
    shift = 0.1 * state.params["model"]["layers"]["first"][:, :1].T
    return batch | {"inputs": batch["inputs"] + shift}


def run_process(
    folder,
    *,
    steps,
    every,
    fsdp=1,
    tensor=1,
    delay=0.0,
    hang_at=-1,
    prepare_every=1,
    until=None,
    interleaved=False,
):
    """One start of the run in `folder`: to its end, or 75 when preempted. The exit code.

    hang_at: the draw of the data for which the last process waits and waits. until: finish with
    this step, as if it were the last. interleaved: devices of the processes take turns in the mesh.
    """
    folder = Path(folder)
    devices = jax.devices()
    if interleaved:
        devices = sorted(devices, key=lambda d: (d.id % jax.local_device_count(), d.process_index))
    mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), devices)
    (folder / f"pid-{jax.process_index()}").write_text(str(os.getpid()))

    def slow(step, rows):
        time.sleep(delay)
        while step == hang_at and jax.process_index() == jax.process_count() - 1:
            time.sleep(1)
        return batches(step, rows)

    held = {"prepare": hold, "prepare_every": prepare_every} if prepare_every > 1 else {}
    identity = {"steps": steps, "every": every}
    with Checkpoints(folder / "checkpoints", identity, every=every) as checkpoints:
        begin = max(checkpoints.steps, default=-1)
        if runtime.is_main():
            with (folder / "starts.txt").open("a") as file:
                file.write(f"{begin}\n")
            writer = Jsonl(folder / "metrics.jsonl", start=begin)
        else:
            writer = None
        try:
            state = train(
                mesh,
                steps=until or steps,
                checkpoints=checkpoints,
                batches=slow,
                writer=writer,
                log_every=2,
                hooks=[Hook(5, lambda step, state, frozen: {}, at_start=True)],
                **held,
            )
        except (Preempted, NonFinite) as stop:
            return stop.exit_code
    if until is not None:
        return 0
    found = values_of(state, mesh)
    values, rows = evaluate(EVAL_STEP, state.params, {}, {}, examples(), batch_size=ROWS, mesh=mesh)
    if runtime.is_main():
        np.savez(folder / "final.npz", **found)
        np.savez(folder / "rows.npz", **rows)
        (folder / "values.json").write_text(json.dumps(values))
    return 0


def main(argv=None):
    """python tiny_run.py FOLDER --devices 4 --steps 9 ...; joins others by the environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang-at", type=int, default=-1)
    parser.add_argument("--until", type=int)
    parser.add_argument("--interleaved", action="store_true")
    parser.add_argument("--cache", default="")
    args = vars(parser.parse_args(argv))
    runtime.init(args.pop("devices"), cache=args.pop("cache"))
    return run_process(args.pop("folder"), **args)


if __name__ == "__main__":
    raise SystemExit(main())
