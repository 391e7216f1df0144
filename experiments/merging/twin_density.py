"""Twin-Merging: shared weights, and for each input the exclusive parts that a router asks for.

Paper: Lu et al. 2024 (arXiv 2406.15479). Specialists of one task each, fine-tuned from one
pretrained perceptron with its head frozen, are merged by task arithmetic. What each of them has
beside that is cut to low rank; a router, trained on features of the shared model to tell the tasks
apart, weighs the parts for every image, so that each has a model of its own. Normalised accuracy is
the merged model's over the specialist's, a mean over the tasks.

The router's best pass is chosen on validation images (the released code takes the test's).

Claim: Twin-Merging is above task arithmetic, and near the specialists as the density nears 1 and
the router is right.

    python -m experiments.merging.twin_density smoke     # two tasks, two seeds: 10 s
    python -m experiments.merging.twin_density laptop    # six tasks, five seeds: 2 minutes

Measured at `laptop` (two CPU cores, 2026-11): 99 % of the specialists at density 0.1, where task
arithmetic reaches 76 and, validated, 80 %; the router is right for 97 % of the images.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.common import measuring, specialists
from experiments.merging.common.config import Common
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import examples
from experiments.merging.parts import router, twin_report
from kd_jax import trees
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Stage
from kd_jax.merging.arithmetic import task_vector
from kd_jax.merging.average import average
from kd_jax.merging.twin import combine, twins

CLAIMS = twin_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    densities: tuple[float, ...] = (0.05, 0.1, 0.3, 1.0)
    """Parts of the full rank that exclusive parts keep."""
    scale: float = 0.29
    """Coefficient of task arithmetic, which makes what is shared."""
    router_rate: float = 5e-4
    """The router's learning rate, of Adam."""
    router_passes: int = 30
    """The router's passes over the training images of all tasks."""
    router_batch: int = 128
    """Images in its batches."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "densities", "scale", "router_rate", "router_passes", "router_batch")
        check_distinct(self, "densities")
        if max(self.densities) > 1:
            raise ValueError(f"densities: got {max(self.densities)}, takes up to 1")


PRESETS = {
    "smoke": Config(
        tasks=2, seeds=2, widths=(64, 64), steps=100, densities=(0.1, 1.0), router_passes=3
    ),
    "laptop": Config(seed=10),
}


def stages(config: Config) -> tuple[Stage, ...]:
    merging = specialists.merging(config, "merged", functools.partial(_merged, config))
    return specialists.stages(config) + merging


def _merged(config: Config, seed: int, models: Models) -> Mapping[str, Any]:
    benchmark, head, base = config.benchmark, models.head, models.base
    names, thetas = tuple(models.specialists), list(models.specialists.values())
    judged = measuring.judge(benchmark, head, models.specialists)
    train, validation, test = examples(benchmark, names, "train"), judged.validation, judged.test
    made = {density: _twins(density)(base, thetas, config.scale) for density in config.densities}
    shared = next(iter(made.values())).shared  # the same for all densities

    learning = router.Learning(config.router_rate, config.router_passes, config.router_batch)
    seen = [router.features(benchmark, head, shared, x.inputs) for x in (train, validation, test)]
    each = router.weights(router.trained(seen[0], seen[1], learning, seed=seed), seen[2])

    plain = {
        "pretrained": base,
        "average": average(thetas),
        "task arithmetic": shared,
        "task arithmetic, validated": judged.best(base, task_vector(base, shared)).trunk,
    }
    reached = {name: judged.reached(trunk) for name, trunk in plain.items()}
    values: dict[str, float] = {}
    for density, found in made.items():
        reached[twin_report.twin(density)] = router.routed(benchmark, head, found, each, test)
        # All examples of a task have the same weights here: one model a task.
        alone = [_combine(*found, one) for one in jnp.eye(len(names))]
        reached[twin_report.known(density)] = np.array(
            [judged.reached(trunk)[i] for i, trunk in enumerate(alone)]
        )
        whole = len(names) * trees.size(base)
        values[f"stored/{density:g}"] = 100 * trees.size(tuple(found)) / whole
    for name, per_task in {"specialist": judged.own, **reached}.items():
        values |= {f"{name}/{task}": x for task, x in zip(names, per_task.tolist(), strict=True)}
        values[f"{name}/normalised"] = measuring.normalised(per_task, judged.own)
    return values | _routing(names, np.asarray(each, np.float64))


def _routing(names: tuple[str, ...], each: np.ndarray) -> dict[str, float]:
    """The router's accuracy and mean weights from [T, N, T]."""
    right = 100 * (each.argmax(-1) == np.arange(len(names))[:, None]).mean(-1)
    values = {f"router/{task}": x for task, x in zip(names, right.tolist(), strict=True)}
    means = {
        f"routed/{task}/{to}": float(each[i, :, j].mean())
        for i, task in enumerate(names)
        for j, to in enumerate(names)
    }
    return values | means | {"router/all": float(right.mean())}


@functools.cache
def _twins(density: float) -> Any:
    return jax.jit(lambda base, models, scale: twins(base, models, density=density, scale=scale))


_combine = jax.jit(combine)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = [artefacts[f"merged_{seed}"].values for seed in config.repetitions]
    return twin_report.results(config, found, config.densities, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
