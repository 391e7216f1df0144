"""Unlearning of a tiny decoder by the methods of the experiments, on any mesh, cut in any way.

Fixed rows of uneven answers; a `Cut` says how they are laid out, which may not change a result.
It is an experiment of two methods, too, for runs of several processes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.unlearning import _language
from experiments.unlearning._methods import METHODS, REFERENCE, Name, Setting
from kd_jax import optim
from kd_jax.data import arrays
from kd_jax.launch import runtime, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, not_identity
from kd_jax.launch.loop import fit
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import Stage, Training, inner, placed
from kd_jax.models import decoder
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.references import model_sequence_log_probs
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
    return made | {name: {"embedding": 20 * made[name]["embedding"]} for name in _TABLES}


_TABLES = ("embed", "unembed")


@functools.cache
def rows_of(part: str) -> dict[str, np.ndarray]:
    """Rows for two batches: two tokens of a prompt, 1 to 6 of an answer."""
    rng = np.random.default_rng(PARTS.index(part))
    drawn = rng.integers(VOCAB, size=(2 * ROWS, LENGTH + 1), dtype=np.int32)
    place = np.arange(LENGTH)[None]
    answer = (place > 0) & (place <= rng.integers(1, 7, size=2 * ROWS)[:, None])
    whole = {"inputs": drawn[:, :-1], "targets": drawn[:, 1:], "weights": answer.astype(np.float32)}
    log_probs = jax.jit(lambda batch: model_sequence_log_probs(MODEL, start(), batch))(whole)
    index = np.arange(2 * ROWS, dtype=np.int32)
    return whole | {"index": index, REFERENCE: np.asarray(log_probs)}


def batch_of(step: int, cut: Cut) -> dict[str, dict[str, np.ndarray]]:
    """Rows at the front, padding rows behind; tokens on the left, padding on the right."""

    def padded(x: np.ndarray, name: str) -> np.ndarray:
        width = [(0, cut.padding_rows)] + [(0, cut.length - LENGTH)] * (x.ndim - 1)
        fill = {"weights": 0, "index": -1, REFERENCE: 0}.get(name, PADDING)
        return np.pad(x, width, constant_values=fill)

    chosen = (np.arange(ROWS) + step * ROWS) % (2 * ROWS)
    return {
        part: {name: padded(x[chosen], name) for name, x in rows_of(part).items()}
        for part in PARTS
    }


def training(method: Name, rank: int, cut: Cut) -> Training:
    """Unlearning by a method; rank 0 trains all parameters, another an adapter."""
    adapter = _language.Adapter(rank=rank, alpha=8.0)
    tune = _language.tuning(adapter, DECODER, weights.from_arrays(start()), 1)
    frozen = "base" if rank else "reference"
    setting = Setting(MODEL, tune.policy, frozen_weights(frozen), BETA, DECODER.depth, STEPS)
    batch_size = ROWS + cut.padding_rows
    return Training(
        # Adam would turn the sign of a step where the gradient is nearly 0.
        step=make_train_step(
            METHODS[method].objective(setting),
            optim.sgd(0.05, momentum=0.9),
            microbatches=cut.microbatches,
        ),
        weights=tune.weights,
        frozen=weights.joined(**{frozen: weights.from_arrays(start())}),
        frozen_rules={frozen: RULES},
        batches=lambda step, rows: {
            part: arrays.take(x, rows) for part, x in batch_of(step, cut).items()
        },
        batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of(0, cut)),
        batch_size=batch_size,
        steps=STEPS,
        rules=tune.rules,
    )


class Trained(NamedTuple):
    """On the host: the model's part, the method's carry, metrics of each step; what was frozen."""

    model: Any
    carry: Any
    metrics: list[dict[str, float]]
    frozen: Any


def train(work: Training, mesh: Any) -> Trained:
    """As a stage is carried out, without its files."""
    assert work.frozen is not None
    plan = placed("unlearning", work, mesh)
    frozen = work.frozen.make(plan.frozen)
    key = jax.random.key(work.seed)
    state = weights.init_state(plan.step, work.weights, frozen, work.batch, key, plan.state)
    metrics: list[dict[str, float]] = []

    class Kept:
        def scalars(self, step: int, values: dict[str, float]) -> None:
            metrics.append({name: values[name] for name in values if name in plain})

        def close(self) -> None:
            pass

    plain = set(jax.eval_shape(work.step.apply, inner(plan.state), plan.frozen, plan.batch)[1])
    state = fit(
        plan.step,
        state,
        frozen,
        work.batches,
        steps=work.steps,
        mesh=mesh,
        shardings=shardings_of(plan.state),
        batch_size=work.batch_size,
        writer=Kept(),
        log_every=1,
    )
    return Trained(*jax.device_get((state.params["model"], inner(state).carry, metrics, frozen)))


# As an experiment.

RUN = (("npo_rt", 2), ("rmu", 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    mesh: MeshConfig = not_identity(MeshConfig(data=-1, fsdp=2, tensor=2))


PRESETS = {"smoke": Config()}
CLAIMS = ()


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        Stage(f"{method}_{rank}", lambda _, m=method, r=rank: training(m, r, Cut(microbatches=2)))
        for method, rank in RUN
    )


def report(config: Config, artefacts: Any, folder: Any) -> Results:
    return Results({"processes": jax.process_count(), "main": runtime.is_main()})
