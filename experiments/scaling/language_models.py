"""How fast steps of NPO, DPO and distillation are on language models of 1B to 70B, and what fits.

No paper's claim: the steps that experiments are made of, on random weights and random text, so that
a mesh can be chosen before data and weights are there. `--plan` compiles them for chips that are
not there; a run measures tokens a second and the share of the chips' peak.

    python -m experiments.scaling.language_models smoke                      # 15 s
    python -m experiments.scaling.language_models laptop                     # a minute
    python -m experiments.scaling.language_models 7b --plan v5e:16x16 --mesh.tensor 4
    python -m experiments.scaling.language_models 7b --mesh.data 1 --mesh.fsdp -1   # on a slice

NPO sees half its rows as answers to forget and half as answers to keep, DPO chosen and rejected
halves, distillation all of them as text; the reference or teacher is frozen, in bfloat16. The
shapes are those of TinyLlama-1.1B, Llama-2-7B and Llama-2-70B, which share a vocabulary; the
teacher is one size larger than the student, that of the largest as large.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tyro

from kd_jax import optim
from kd_jax.data import shapes
from kd_jax.launch import plots, run, weights
from kd_jax.launch.claims import Results, Table
from kd_jax.launch.config import Settings, check_positive, not_identity
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.stages import Stage, Training
from kd_jax.losses.preference.margin import dpo
from kd_jax.models import decoder, sizes
from kd_jax.models.decoder import DecoderConfig
from kd_jax.objectives.combinators import add, on
from kd_jax.objectives.distil import distil, soft_tokens, tokens
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import online
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.steps import make_train_step
from kd_jax.types import Model, Objective

CLAIMS = ()
TINY = DecoderConfig(
    vocab=512, width=64, depth=2, heads=4, kv_heads=2, head_dim=16, mlp=128, tied=True
)
SMALL = DecoderConfig(
    vocab=512, width=128, depth=4, heads=4, kv_heads=2, head_dim=32, mlp=384, tied=True
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    model: tyro.conf.Fixed[tyro.conf.Suppress[DecoderConfig]]
    """What is trained."""
    teacher: tyro.conf.Fixed[tyro.conf.Suppress[DecoderConfig]]
    """What distillation learns from."""
    methods: tuple[str, ...] = ("npo", "dpo", "kd")
    """Of npo, dpo, kd."""
    rows: int = 256
    """Sequences in a step, of both halves together."""
    length: int = 2048
    """Tokens in a sequence."""
    microbatches: int = 1
    """Parts into which each batch is cut to save memory."""
    remat_save: tuple[str, ...] = ()
    """What layers keep for the backward pass: of qkv, mixed, attention, gate_up."""
    frozen_on_host: bool = not_identity(False)
    """Keep the frozen model's matrices in the host's memory."""
    steps: int = 20
    """Training steps of each method."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "rows", "length", "microbatches", "steps")
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ValueError(f"methods: got {', '.join(unknown) or 'none'}, takes npo, dpo, kd")
        if self.rows % (2 * self.microbatches):
            raise ValueError(f"rows: got {self.rows}, takes multiples of {2 * self.microbatches}")


def _npo(config: Config) -> Objective:
    model = decoder.decoder(_trained(config))
    forget = negative_preference(model, online(_frozen_model(config.model)), beta=0.1)
    retain = supervise(model, {"nll": next_token_nll})
    return add({"forget": on("forget", forget), "retain": on("retain", retain)})


def _dpo(config: Config) -> Objective:
    model = decoder.decoder(_trained(config))
    loss = functools.partial(dpo, beta=0.1)
    return prefer(model, {"dpo": loss}, online(_frozen_model(config.model)))


def _kd(config: Config) -> Objective:
    student, teacher = decoder.decoder(_trained(config)), _frozen_model(config.teacher)
    return distil(student, teacher, {"nll": tokens(0.5), "kd": soft_tokens(0.5)})


# {method: (its objective, what its batch holds; () for text alone)}
METHODS: dict[str, tuple[Callable[[Config], Objective], tuple[str, ...]]] = {
    "npo": (_npo, ("forget", "retain")),
    "dpo": (_dpo, ("chosen", "rejected")),
    "kd": (_kd, ()),
}

PRESETS = {
    "smoke": Config(model=TINY, teacher=SMALL, rows=16, length=64, steps=6),
    "laptop": Config(model=SMALL, teacher=SMALL, rows=16, length=256, steps=12),
    "1b": Config(mesh=MeshConfig(1, -1), model=sizes.TINYLLAMA_1B, teacher=sizes.LLAMA2_7B),
    "7b": Config(mesh=MeshConfig(1, -1), model=sizes.LLAMA2_7B, teacher=sizes.LLAMA2_70B),
    "70b": Config(mesh=MeshConfig(1, -1), model=sizes.LLAMA2_70B, teacher=sizes.LLAMA2_70B),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        Stage(method, functools.partial(_training, config, method)) for method in config.methods
    )


def _trained(config: Config) -> DecoderConfig:
    return dataclasses.replace(config.model, remat_save=config.remat_save)


def _frozen(config: DecoderConfig) -> DecoderConfig:
    """A model as it is kept when it is not trained: its parameters in the compute dtype."""
    return dataclasses.replace(config, param_dtype=config.dtype)


def _frozen_model(config: DecoderConfig) -> Model:
    return decoder.decoder(_frozen(config))


def _training(config: Config, method: str, _: Any) -> Training:
    objective, parts = METHODS[method]
    name = "reference" if parts else "teacher"
    frozen = _frozen(config.model if parts else config.teacher)
    rows = config.rows // max(1, len(parts))
    return Training(
        step=make_train_step(
            objective(config), optim.adamw(1e-5, clip=1.0), microbatches=config.microbatches
        ),
        weights=weights.from_init(decoder.decoder(_trained(config)).init, jax.random.key(0)),
        frozen=weights.joined(
            **{name: weights.from_init(decoder.decoder(frozen).init, jax.random.key(1))}
        ),
        frozen_rules={name: decoder.rules(frozen)},
        host=(name,) if config.frozen_on_host else (),
        batches=functools.partial(_random_text, config, parts),
        batch=_nested(parts, shapes.text(rows, config.length)),
        batch_size=rows,
        steps=config.steps,
        rules=decoder.rules(config.model),
        result=lambda state, frozen: None,
    )


def _nested(parts: tuple[str, ...], batch: Any) -> Any:
    return dict.fromkeys(parts, batch) if parts else batch


def _random_text(config: Config, parts: tuple[str, ...], step: int, rows: slice) -> Any:
    """Each row is a function of its step and number, as any source's."""

    def text(part: int) -> dict[str, np.ndarray]:
        numbers = np.arange(rows.start, rows.stop, dtype=np.int32)
        drawn = np.stack(
            [
                np.random.default_rng([part, step, int(row)]).integers(
                    config.model.vocab, size=config.length + 1, dtype=np.int32
                )
                for row in numbers
            ]
        )
        ones = np.ones((len(numbers), config.length), np.float32)
        return {
            "inputs": drawn[:, :-1],
            "targets": drawn[:, 1:],
            "weights": ones,
            "index": numbers,
        }

    return {part: text(i) for i, part in enumerate(parts)} if parts else text(0)


def report(config: Config, artefacts: Mapping[str, Any], folder: Any) -> Results:
    speeds = {method: artefacts[method].about["speed"] for method in config.methods}
    rows = [{"method": method} | speed for method, speed in speeds.items()]
    plot = plots.bars(
        folder / "plots" / "speed.png",
        {m: {"tokens a second": speed["tokens_per_second"]} for m, speed in speeds.items()},
        y="tokens a second",
        title=f"{config.rows} sequences of {config.length} tokens a step",
    )
    return Results({"speed": speeds}, [Table("Speed of a step", rows)], {"speed": plot})


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
