"""Training that goes on from pretrained weights ends nearer than training from scratch.

A linear regression in two stages, small enough to run many times in a test.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.launch import plots, run, weights
from kd_jax.launch.claims import Claim, Effect, Results, Table, below
from kd_jax.launch.config import Settings, not_identity
from kd_jax.launch.stages import Compute, Evaluation, Stage, Training
from kd_jax.steps import make_train_step
from kd_jax.types import Objective, Output, weighted_sum

FEATURES = 4
RULES = (("kernel", ("embed",)),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser."""

    rate: float = 0.1
    """Learning rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    steps: int = 6
    """Steps of finetuning."""
    pretrain_steps: int = 4
    """Steps of pretraining."""
    optim: Optim = Optim()
    seed: int = 0
    """Random seed."""
    file: str | None = not_identity(None)
    """A file that pretraining reads."""
    fail_at: int = not_identity(-1)
    """The draw of finetuning's data that dies, to test resuming."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, takes at least 1")


PRESETS = {"smoke": Config(steps=4), "laptop": Config()}

CLAIMS = (
    Claim(
        "Finetuning ends with a smaller error than it starts with.",
        "Table 1",
        "0.5",
        lambda results: Effect(**results.values["change"]),
        below(0.0),
        "nothing",
    ),
)


class Died(Exception):
    """Stands for a kill."""


def _objective() -> Objective:
    def loss(params, carry, frozen, batch, ctx):
        target = batch["inputs"] @ jnp.arange(FEATURES, dtype=jnp.float32)
        error = batch["inputs"] @ params["model"]["kernel"] - target
        noise = 0.0 if not ctx.train else 0.01 * jax.random.normal(ctx.key)
        return Output({"mse": weighted_sum(jnp.square(error + noise), batch["weights"])})

    return Objective(lambda key, params, frozen, batch: ({}, {}), loss)


def _inputs(seed: int, rows: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=seed))
    return rng.standard_normal((rows, FEATURES)).astype(np.float32)


def _training(config: Config, start: weights.Weights, steps: int, seed: int, die: int) -> Training:
    def batches(step: int, rows: slice):
        if step == die:
            raise Died
        return {"inputs": _inputs(1000 * seed + step, 8)[rows], "weights": np.ones(8, "f")[rows]}

    def distance(params, carry, frozen):
        assert carry == {}
        error = np.asarray(params["model"]["kernel"]) - np.arange(FEATURES)
        return {"mse": float(np.mean(error**2)), "error": error}

    return Training(
        step=make_train_step(_objective(), optax.adam(config.optim.rate)),
        weights=start,
        batches=batches,
        batch={
            "inputs": jax.ShapeDtypeStruct((8, FEATURES), np.float32),
            "weights": jax.ShapeDtypeStruct((8,), np.float32),
        },
        batch_size=8,
        steps=steps,
        rules=RULES,
        seed=seed,
        evaluations=(Evaluation("distance", 2, distance),),
    )


def stages(config: Config) -> tuple[Stage, ...]:
    def pretrain(_):
        if config.file is not None:
            open(config.file).close()
        init = weights.from_init(lambda key: {"kernel": jnp.zeros(FEATURES)}, jax.random.key(0))
        return _training(config, init, config.pretrain_steps, config.seed, -1)

    def finetune(artefacts):
        start = artefacts["pretrain"].weights()
        return _training(config, start, config.steps, config.seed + 1, config.fail_at)

    def norm(artefacts):
        return Compute(
            lambda: (
                None,
                {"mse": artefacts["finetune"].values["distance/mse"], "ones": np.ones(2)},
            )
        )

    early = {"steps": config.pretrain_steps, "optim": config.optim, "seed": config.seed}
    return (
        Stage("pretrain", pretrain, depends=early),
        Stage("finetune", finetune, ("pretrain",)),
        Stage("norm", norm, ("finetune",)),
    )


def report(config: Config, artefacts, folder) -> Results:
    steps, errors = artefacts["finetune"].series("distance/mse")
    change = errors[-1] - errors[0]
    effect = Effect(change, change - 0.01, change + 0.01)
    plot = plots.lines(
        folder / "plots" / "error.png", {"finetune": plots.Line(steps, errors)}, x="step", y="error"
    )
    table = Table(
        "Errors", [{"stage": name, "mse": errors[i]} for i, name in ((0, "a"), (-1, "b"))]
    )
    return Results({"change": effect._asdict(), "nan": float("nan")}, [table], {"error": plot})


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
