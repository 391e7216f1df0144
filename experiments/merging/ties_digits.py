"""TIES merging: trimming, electing signs and averaging what agrees keeps more of each specialist.

Paper: Yadav, Tam, Choshen, Raffel, Bansal 2023 (arXiv 2306.01708). An MLP is pretrained on half of
the digits; specialists for changed images (turned, inverted, mirrored, ...) are fine-tuned from it
with its head frozen, and merged by averaging, task arithmetic and TIES, none tuned on a validation
set. Normalised accuracy is the merged model's over the specialist's, a mean over the tasks.

Claim: TIES keeps more of the specialists than averaging, and than task arithmetic.

    python -m experiments.merging.ties_digits smoke     # two tasks, one seed: 15 s
    python -m experiments.merging.ties_digits laptop    # five tasks, five seeds: 3 minutes
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kd_jax import merging, optim
from kd_jax.data import arrays, images, prepare, sources
from kd_jax.data.builders.digits import Digits
from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch import plots, run, weights
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.config import Settings
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.sharding import shard_tree, with_shardings
from kd_jax.launch.stages import Compute, Stage, Training
from kd_jax.models import mlp
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_accuracy, label_cross_entropy
from kd_jax.steps import make_eval_step, make_train_step

# What is done to the images [N, 8, 8, 1] of each task.
TASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
    "inverted": lambda x: 255 - x,
    "mirrored": lambda x: x[:, :, ::-1],
    "upside down": lambda x: x[:, ::-1],
    "transposed": lambda x: x.swapaxes(1, 2),
}
MERGES = ("average", "task arithmetic", "TIES")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    tasks: int = 5
    """Specialists: the first so many of turned, inverted, mirrored, upside down, transposed."""
    seeds: int = 5
    """Repetitions of everything, pretraining included."""
    widths: tuple[int, ...] = (128, 128)
    """Hidden layers."""
    scale: float = 0.4
    """Task arithmetic's scale, the paper's choice without validation."""
    density: float = 0.2
    """The part of each task vector that TIES keeps, the paper's choice without validation."""
    rate: float = 3e-3
    """Peak learning rate of AdamW; a third of it in fine-tuning."""
    steps: int = 400
    """Training steps of the pretrained model and of each specialist."""
    batch_size: int = 64
    """Images in a batch."""

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.tasks <= len(TASKS):
            raise ValueError(f"tasks: got {self.tasks}, takes 2 to {len(TASKS)}")

    @property
    def model(self):
        return mlp.mlp(mlp.MLPConfig(inputs=64, widths=self.widths, classes=10))


PRESETS = {
    "smoke": Config(tasks=2, seeds=1, steps=100),
    "laptop": Config(),
}


def _difference(name: str):
    return lambda results: Effect(**results.values["ties_minus"][name])


CLAIMS = tuple(
    Claim(
        f"TIES has a higher normalised accuracy over the tasks than {name}, without validation "
        "(mean difference of paired seeds, in points).",
        "arXiv 2306.01708, Table 1 (rows without validation)",
        paper,
        _difference(name),
        above(0.0),
    )
    for name, paper in (
        ("average", "ViT-B/32, 8 tasks: averaging 65.9, TIES 72.4 (UNVERIFIED)"),
        ("task arithmetic", "ViT-B/32, 8 tasks: task arithmetic 60.4, TIES 72.4 (UNVERIFIED)"),
    )
)


@functools.cache
def _digits() -> dict[str, dict[str, np.ndarray]]:
    splits = prepare.load(Digits)
    return {split: images.image_arrays(splits[split]) for split in ("train", "test")}


def _changed(task: str | None, split: str) -> dict[str, np.ndarray]:
    """The split's images as a task sees them; for None every other image, as it is."""
    found = _digits()[split]
    if task is None:
        return arrays.take(found, slice(0, None, 2))
    return found | {"inputs": np.ascontiguousarray(TASKS[task](found["inputs"]))}


def _tasks(config: Config) -> tuple[str, ...]:
    return tuple(TASKS)[: config.tasks]


def stages(config: Config) -> tuple[Stage, ...]:
    found = []
    for seed in range(config.seeds):
        base = f"pretrained_{seed}"
        found.append(Stage(base, functools.partial(_pretraining, config, seed)))
        names = {task: f"{task.replace(' ', '_')}_{seed}" for task in _tasks(config)}
        found += [
            Stage(name, functools.partial(_finetuning, config, seed, task, base), (base,))
            for task, name in names.items()
        ]
        merge = functools.partial(_merging, config, base, names)
        found.append(Stage(f"merged_{seed}", merge, (base, *names.values())))
    return tuple(found)


def _pretraining(config: Config, seed: int, artefacts: Any) -> Training:
    start = weights.from_init(config.model.init, jax.random.key(seed))
    return _training(config, start, None, None, config.rate, seed)


def _finetuning(config: Config, seed: int, task: str, base: str, artefacts: Any) -> Training:
    # The last layer is the head: the pretrained model's, so that trunks can be merged.
    trunk = r"model/layer_[0-%d]/.*" % (len(config.widths) - 1)
    return _training(config, artefacts[base].weights(), trunk, task, config.rate / 3, seed)


def _training(
    config: Config, start: weights.Weights, trains: str | None, task: str | None,
    rate: float, seed: int,
) -> Training:
    schedule = optim.warmup_cosine(rate, warmup=config.steps // 20, steps=config.steps)
    objective = supervise(config.model, {"ce": label_cross_entropy})

    @functools.cache
    def source() -> sources.Source:
        rows = _changed(task, "train")
        return sources.array_batches(rows, seed=seed, name="images", batch_size=config.batch_size)

    of, rows = jax.ShapeDtypeStruct, config.batch_size
    return Training(
        step=make_train_step(objective, optim.adamw(schedule), trains=trains),
        weights=start,
        batches=lambda step, rows: source()(step, rows),
        batch={
            "inputs": of((rows, 8, 8, 1), np.uint8),
            "targets": of((rows,), np.int32),
            "weights": of((rows,), np.float32),
            "index": of((rows,), np.int32),
        },
        batch_size=rows,
        steps=config.steps,
        rules=mlp.RULES,
        seed=seed,
    )


def _merging(
    config: Config, base: str, names: Mapping[str, str], artefacts: Any
) -> Compute:
    step = _eval_step(config)

    def merge() -> tuple[None, Mapping[str, Any]]:
        mesh = make_mesh(config.mesh)

        def arrays_of(name: str) -> Any:
            w = artefacts[name].weights()
            placed = shard_tree(w.abstract, mlp.RULES, mesh)
            return w.make(with_shardings(w.abstract, placed))

        def accuracy(params: Any, task: str) -> float:
            examples = _changed(task, "test")
            state = {"model": params, "aux": {}}
            values, _ = evaluate(step, state, {}, {}, examples, batch_size=360, mesh=mesh)
            return 100 * values["accuracy"]

        theta0, specialists = arrays_of(base), {t: arrays_of(n) for t, n in names.items()}
        thetas = list(specialists.values())
        own = {task: accuracy(theta, task) for task, theta in specialists.items()}
        merged = {
            "average": merging.average(thetas),
            "task arithmetic": merging.task_arithmetic(theta0, thetas, scale=config.scale),
            "TIES": merging.ties(theta0, thetas, density=config.density, scale=1.0),
        }
        found: dict[str, float] = {f"specialist/{task}": value for task, value in own.items()}
        for name, params in {"pretrained": theta0, **merged}.items():
            shares = {task: accuracy(params, task) for task in own}
            found |= {f"{name}/{task}": value for task, value in shares.items()}
            found[f"{name}/normalised"] = float(
                np.mean([100 * shares[task] / own[task] for task in own])
            )
        return None, found

    return Compute(merge)


@functools.cache
def _eval_step(config: Config) -> Any:
    terms = {"ce": label_cross_entropy}
    return make_eval_step(supervise(config.model, terms, metrics={"accuracy": label_accuracy}))


def report(config: Config, artefacts: Mapping[str, Any], folder: Any) -> Results:
    found = [artefacts[f"merged_{seed}"].values for seed in range(config.seeds)]

    def over_seeds(key: str) -> np.ndarray:
        return np.array([values[key] for values in found])

    names = ("pretrained", *MERGES)
    normalised = {name: over_seeds(f"{name}/normalised") for name in names}
    means = {name: Effect(*mean_interval(x)) for name, x in normalised.items()}
    groups = {
        task: {n: Effect(*mean_interval(over_seeds(f"{n}/{task}"))) for n in ("specialist", *MERGES)}
        for task in _tasks(config)
    }
    rows = [
        {"model": name, "normalised": means.get(name)}
        | {task: groups[task].get(name) for task in groups}
        for name in ("specialist", *MERGES)
    ]
    rows.append({"model": "pretrained", "normalised": means["pretrained"]})
    minus = {
        name: Effect(*mean_interval(normalised["TIES"] - normalised[name]))._asdict()
        for name in MERGES[:2]
    }
    plot = plots.bars(
        folder / "plots" / "accuracy.png",
        groups,
        y="test accuracy (%)",
        title=f"{config.tasks} specialists merged, {config.seeds} seeds (95 %)",
    )
    values = {
        "normalised": {name: x.tolist() for name, x in normalised.items()},
        "ties_minus": minus,
    }
    return Results(values, [Table("Accuracy after merging (%)", rows)], {"accuracy": plot})


if __name__ == "__main__":
    run.main(sys.modules[__name__])
