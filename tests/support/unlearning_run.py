"""Unlearning of a tiny decoder by the methods of the experiments, on any mesh, cut in any way.

Fixed rows of uneven answers; a `Cut` says how they are laid out, which may not change a result.
It is an experiment, too, for runs of several processes.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.unlearning.common import lm
from experiments.unlearning.common.methods import METHODS, REFERENCE, Name, Setting
from kd_jax import optim
from kd_jax.data import arrays
from kd_jax.launch import run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, not_identity
from kd_jax.launch.loop import fit
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.meter import MEASURED
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import Stage, Training, inner, placed
from kd_jax.models import decoder
from kd_jax.objectives.combinators import add, frozen_weights
from kd_jax.steps import make_train_step

VOCAB, ROWS, LENGTH, STEPS, BETA = 32, 8, 8, 3, 0.1
DECODER = decoder.DecoderConfig(
    vocab=VOCAB, width=16, depth=2, heads=2, kv_heads=2, head_dim=8, mlp=32, remat=False
)
MODEL, RULES = decoder.decoder(DECODER), decoder.rules(DECODER)
PARTS = ("forget", "retain", "refusal", "retain_refusal")
PADDING = 5  # a token as any other: weights say what is padding


class Cut(NamedTuple):
    """How rows become batches: length of a row, padding rows of a batch, microbatches."""

    length: int = LENGTH
    padding_rows: int = 0
    microbatches: int = 1


@functools.cache
def start() -> Any:
    """Weights away from initialisation, where all tokens are nearly equally likely."""
    made = jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))
    return made | {
        name: {"embedding": 40 * made[name]["embedding"]} for name in made if "emb" in name
    }


@functools.cache
def rows_of(part: str) -> dict[str, np.ndarray]:
    """Rows for two batches: two tokens of a prompt, 1 to 6 of an answer, which the model knows."""
    rng = np.random.default_rng(PARTS.index(part))
    inputs = rng.integers(VOCAB, size=(2 * ROWS, LENGTH), dtype=np.int32)
    place = np.arange(LENGTH)[None]
    answer = (place > 0) & (place <= rng.integers(1, 7, size=2 * ROWS)[:, None])
    logits = jax.jit(lambda x: MODEL.apply(start(), {"inputs": x}).head.logits())(inputs)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    return {
        "inputs": inputs,
        "targets": log_probs.argmax(-1).astype(np.int32),
        "weights": answer.astype(np.float32),
        "index": np.arange(2 * ROWS, dtype=np.int32),
        REFERENCE: (log_probs.max(-1) * answer).sum(-1),
    }


def batch_of(step: int, cut: Cut) -> dict[str, dict[str, np.ndarray]]:
    """Rows at the front, padding rows behind; tokens on the left, padding on the right."""

    def padded(x: np.ndarray, name: str) -> np.ndarray:
        width = [(0, cut.padding_rows)] + [(0, cut.length - LENGTH)] * (x.ndim - 1)
        fill = {"weights": 0, "index": -1, REFERENCE: 0}.get(name, PADDING)
        return np.pad(x, width, constant_values=fill)

    chosen = (np.arange(ROWS) + step * ROWS) % (2 * ROWS)
    return {
        part: {name: padded(x[chosen], name) for name, x in rows_of(part).items()} for part in PARTS
    }


def training(methods: Sequence[Name], rank: int, cut: Cut) -> Training:
    """Unlearning by the sum of methods; rank 0 trains all parameters, another an adapter."""
    adapter = lm.Adapter(rank=rank, alpha=8.0)
    tune = lm.tuning(adapter, DECODER, weights.from_arrays(start()), 1)
    frozen = "base" if rank else "reference"
    setting = Setting(MODEL, tune.policy, frozen_weights(frozen), BETA, DECODER.depth, STEPS)
    objective = add({name: METHODS[name].objective(setting) for name in methods})
    return Training(
        # Adam would turn the sign of a step where the gradient is nearly 0.
        step=make_train_step(
            objective, optim.sgd(0.05, momentum=0.9), microbatches=cut.microbatches
        ),
        weights=tune.weights,
        frozen=weights.joined(**{frozen: weights.from_arrays(start())}),
        frozen_rules={frozen: RULES},
        batches=lambda step, rows: {
            part: arrays.take(x, rows) for part, x in batch_of(step, cut).items()
        },
        batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of(0, cut)),
        batch_size=ROWS + cut.padding_rows,
        steps=STEPS,
        rules=tune.rules,
    )


class Kept(NamedTuple):
    """A writer that keeps the numbers of each step, but those of the clock."""

    lines: list[dict[str, float]]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append({name: x for name, x in values.items() if name not in MEASURED})

    def close(self) -> None:
        pass


class Trained(NamedTuple):
    """On the host: the model's part, the method's carry, what was frozen; numbers of each step."""

    model: Any
    carry: Any
    frozen: Any
    metrics: list[dict[str, float]]


def train(work: Training, mesh: Any) -> Trained:
    """As a stage is carried out, without its files."""
    assert work.frozen is not None
    plan = placed("unlearning", work, mesh)
    frozen = work.frozen.make(plan.frozen)
    key = jax.random.key(work.seed)
    state = weights.init_state(plan.step, work.weights, frozen, work.batch, key, plan.state)
    kept = Kept([])
    state = fit(
        plan.step,
        state,
        frozen,
        work.batches,
        steps=work.steps,
        mesh=mesh,
        shardings=shardings_of(plan.state),
        batch_size=work.batch_size,
        writer=kept,
        log_every=1,
    )
    return Trained(*jax.device_get((state.params["model"], inner(state).carry, frozen)), kept.lines)


# As an experiment.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    mesh: MeshConfig = not_identity(MeshConfig(data=-1, fsdp=2, tensor=2))


PRESETS = {"smoke": Config()}
CLAIMS = ()
RUN: tuple[tuple[Name, ...], int] = (("npo_rt", "rmu"), 2)


def stages(config: Config) -> tuple[Stage, ...]:
    return (Stage("unlearned", lambda _: training(*RUN, Cut(microbatches=2))),)


def report(config: Config, artefacts: Any, folder: Any) -> Results:
    return Results()


if __name__ == "__main__":
    raise SystemExit(run.main("support.unlearning_run", ["smoke", "--workdir", sys.argv[1]]))
