"""What training for pass@n does to the chance that one of n guesses is right.

Paper: Chen et al. 2025, rethinking fine-tuning when scaling test-time compute (arXiv 2502.07154).
A perceptron that is larger than its task learns images of which some labels are wrong, by
cross-entropy and by direct coverage optimisation (DCO) for n guesses. Its rate is constant, so that
every point of a curve is a training of that length. A guess is a class drawn from the prediction;
pass@n is the chance that one of n guesses for a test image, whose labels are all right, is right.

Claim: the longer cross-entropy trains, the surer of itself the model is and the lower pass@n for
large n; DCO keeps the confidence down, and the model trained for n is the best at n guesses.

    python -m experiments.preference.dco_pass_at_n smoke     # digits, 2 seeds: 8 s
    python -m experiments.preference.dco_pass_at_n laptop    # Fashion-MNIST, 5 seeds: 3 minutes

`laptop` needs Fashion-MNIST (environment KD_JAX_DATA or a download).

Measured at `laptop` (two CPU cores, 2026-11): in 60 epochs cross-entropy goes from 47 to 62 % at
one guess, and from 97 to 84 % at 16; DCO for 16 stays at 96 %, and has 38 % at one. Cross-entropy
that stops after five epochs is better at four and at 16 guesses than any model at the end: here
DCO saves from training for too long, and is no better there than stopping in time.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.preference.parts import dco_report
from kd_jax import optim
from kd_jax.data import arrays, images, prepare, shapes, sources
from kd_jax.data.builders.digits import Digits
from kd_jax.data.builders.fashion_mnist import FashionMnist
from kd_jax.launch import evaluation, run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import (
    Settings,
    check_distinct,
    check_positive,
    identity,
    not_identity,
)
from kd_jax.launch.stages import Evaluation, Program, Stage, Training, mesh_of
from kd_jax.losses.coverage import dco
from kd_jax.models import mlp
from kd_jax.objectives.coverage import label_coverage
from kd_jax.objectives.supervise import TermOf, supervise
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Batch, Model, ModelOutput, Term, weighted_sum

CLAIMS = dco_report.CLAIMS
TEST_BATCH = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    fashion: bool = False
    """Fashion-MNIST instead of digits."""
    folder: str | None = not_identity(None)
    """Where Fashion-MNIST's files lie (by default the environment's KD_JAX_DATA)."""
    counts: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of guesses that models are trained for and measured at; 1 is cross-entropy."""
    seeds: int = 5
    """Models of each kind; seed s fixes images, wrong labels, initial weights and order."""
    seed: int = 0
    """The first of them."""
    images: int = 1024
    """Training images."""
    noise: float = 0.3
    """The share of them that gets one of the other labels."""
    widths: tuple[int, ...] = (256, 256)
    """Hidden layers."""
    rate: float = 1e-3
    """Learning rate of Adam."""
    batch_size: int = 128
    """Images in a batch."""
    epochs: int = 40
    """Passes over the training images."""
    measured: int = 10
    """How often a model is measured."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "counts")
        check_positive(self, "counts", "images", "widths", "rate", "batch_size", "epochs")
        if 1 not in self.counts:
            said = " ".join(map(str, self.counts))
            raise ValueError(f"counts: got {said}, takes 1, cross-entropy, among them")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise: got {self.noise}, takes a number in [0, 1]")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")
        if not 2 <= self.measured <= self.epochs:
            raise ValueError(f"measured: got {self.measured}, takes 2 to epochs, {self.epochs}")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def epoch(self) -> int:
        """Steps of one pass."""
        return -(-self.images // self.batch_size)


PRESETS = {
    "smoke": Config(
        counts=(1, 16), seeds=2, images=384, widths=(64,), batch_size=64, epochs=20, measured=2
    ),
    "laptop": Config(fashion=True, images=2048, epochs=60, measured=12, seed=10),
}


def stages(config: Config) -> tuple[Stage, ...]:
    shared = {
        name: value
        for name, value in identity(config).items()
        if name not in ("counts", "seeds", "seed")
    }
    return tuple(
        Stage(
            f"for_{n}_{seed}",
            functools.partial(_training, config, n, seed),
            (),
            shared | {"n": n, "seed": seed, "measured at": list(config.counts)},
        )
        for seed in config.repetitions
        for n in config.counts
    )


@functools.cache
def _images(fashion: bool, folder: str | None) -> dict[str, dict[str, np.ndarray]]:
    splits = prepare.load(FashionMnist if fashion else Digits, manual_dir=folder)
    return {split: images.image_arrays(splits[split]) for split in ("train", "test")}


def noisy(train: arrays.Arrays, count: int, noise: float, seed: int) -> dict[str, Any]:
    """Some of the images; of these a share gets another label, all others being as likely."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    chosen = arrays.take(train, rng.permutation(arrays.size(train))[:count])
    wrong = rng.permutation(count) < round(noise * count)
    moved = (chosen["targets"] + rng.integers(1, 10, count)) % 10
    return chosen | {"targets": np.where(wrong, moved, chosen["targets"]).astype(np.int32)}


def _model(config: Config) -> Model:
    side = 28 if config.fashion else 8
    return mlp.mlp(mlp.MLPConfig(inputs=side * side, widths=config.widths, classes=10))


def _training(config: Config, n: int, seed: int, found: Mapping[str, Any]) -> Training:
    model = _model(config)

    @functools.cache
    def source() -> sources.Source:
        train = noisy(
            _images(config.fashion, config.folder)["train"], config.images, config.noise, seed
        )
        return sources.array_batches(train, seed=seed, name="images", batch_size=config.batch_size)

    objective = supervise(model, {"dco": label_coverage(n)})
    return Training(
        step=make_train_step(objective, optim.adamw(config.rate)),
        weights=weights.from_init(model.init, jax.random.key(seed)),
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.images(config.batch_size, 28 if config.fashion else 8),
        batch_size=config.batch_size,
        steps=config.epochs * config.epoch,
        rules=mlp.RULES,
        seed=seed,
        evaluations=(_test(config, model),),
    )


def _pass_at(n: int) -> TermOf:
    return label_coverage(n, lambda log_probs, n: 100 * jnp.exp(-dco(log_probs, n=n)))


def _confidence(output: ModelOutput, batch: Batch) -> Term:
    likeliest = jax.nn.softmax(output.head.logits()).max(-1)
    return weighted_sum(100 * likeliest, batch["weights"])


def _test(config: Config, model: Model) -> Evaluation:
    measures = {f"pass@{n}": _pass_at(n) for n in config.counts} | {"confidence": _confidence}
    step = make_eval_step(supervise(model, {}, metrics=measures))

    def alone(params: Any) -> Any:
        return {"model": params["model"], "aux": {}}

    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, float]:
        test, mesh = _images(config.fashion, config.folder)["test"], mesh_of(params)
        values, _ = evaluation.evaluate(
            step, alone(params), {}, {}, test, batch_size=TEST_BATCH, mesh=mesh
        )
        return {name: values[name] for name in measures}

    def plan(params: Any, carry: Any, frozen: Any) -> Mapping[str, Program]:
        batch = shapes.images(TEST_BATCH, 28 if config.fashion else 8)
        mesh = mesh_of(params)
        return {"test": evaluation.program(step, alone(params), {}, {}, batch, mesh=mesh)}

    return Evaluation("test", config.epoch * (config.epochs // config.measured), measure, plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return dco_report.results(config, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
