"""Stages of a pretrained model and its specialists, for each seed, and of what is merged of them.

A specialist starts from the pretrained model and trains the trunk alone: the head is frozen, so
that trunks can be merged and measured under one head.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from experiments.merging.common import measuring
from experiments.merging.common.config import OfImages
from experiments.merging.common.tasks import Benchmark, changed, mixed
from kd_jax import optim
from kd_jax.data import shapes, sources
from kd_jax.launch import weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Program, Stage, Training, materialise, shapes_on
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.steps import make_train_step
from kd_jax.types import TrainStep

PyTree = Any


class Models(NamedTuple):
    """The trunks of a seed, trees without the head: of the pretrained model, of each specialist.

    others: of what else was trained from the pretrained model under its head.
    """

    head: PyTree
    base: PyTree
    specialists: dict[str, PyTree]
    others: Mapping[str, PyTree] = {}

    def first(self, count: int) -> "Models":
        """With the first so many specialists only."""
        return self._replace(specialists=dict(list(self.specialists.items())[:count]))


def stages(config: OfImages) -> tuple[Stage, ...]:
    """pretrained_{seed} and {task}_{seed}, for all seeds and tasks."""
    found = []
    for seed in config.repetitions:
        base = f"pretrained_{seed}"
        mix = {"tasks": list(config.names), "pretraining_images": config.pretraining_images}
        found.append(
            Stage(
                base, functools.partial(_pretrained, config, seed), (), learning(config, seed) | mix
            )
        )
        found += [
            Stage(
                f"{task}_{seed}",
                functools.partial(_specialist, config, seed, task),
                (base,),
                learning(config, seed) | {"task": task},
            )
            for task in config.names
        ]
    return tuple(found)


def learning(config: OfImages, seed: int) -> dict[str, Any]:
    """What every training depends on, besides its images and where it starts."""
    return {
        **config.architecture,
        "rate": config.rate,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": seed,
    }


def _pretrained(config: OfImages, seed: int, artefacts: Any) -> Training:
    start = weights.from_init(config.benchmark.model.init, jax.random.key(seed))
    train = functools.partial(mixed, config.benchmark, config.names, config.pretraining_images)
    rate, steps = config.pretraining
    return training(config, start, train, seed, rate=rate, steps=steps)


def _specialist(config: OfImages, seed: int, task: str, artefacts: Any) -> Training:
    start = artefacts[f"pretrained_{seed}"].weights()
    train = functools.partial(changed, config.benchmark, task, "train")
    return training(config, start, train, seed, trunk=True)


def training(
    config: OfImages,
    start: weights.Weights,
    train: Callable[[], Mapping[str, Any]],
    seed: int,
    *,
    trunk: bool = False,
    rate: float | None = None,
    steps: int | None = None,
) -> Training:
    """SGD with momentum from `start` on the image arrays train(); of the trunk alone, or of all.

    seed: of the order of images. rate, steps: others than the config's.
    """
    rate, steps = rate or config.rate, steps or config.steps

    @functools.cache
    def source() -> sources.Source:
        return sources.array_batches(
            train(), seed=seed, name="images", batch_size=config.batch_size
        )

    return Training(
        step=_train_step(config.benchmark, rate, steps, trunk),
        weights=start,
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.images(config.batch_size, config.benchmark.side),
        batch_size=config.batch_size,
        steps=steps,
        rules=config.benchmark.rules,
        seed=seed,
    )


@functools.cache
def _train_step(benchmark: Benchmark, rate: float, steps: int, trunk: bool) -> TrainStep:
    schedule = optim.warmup_cosine(rate, warmup=steps // 20, steps=steps)
    objective = supervise(benchmark.model, {"ce": label_cross_entropy})
    trains = (lambda path: path.split("/")[1] != benchmark.head) if trunk else None
    return make_train_step(objective, optim.sgd(schedule, momentum=0.9), trains=trains)


def merging(
    config: OfImages,
    name: str,
    run: Callable[[int, Models], Mapping[str, Any]],
    depends: Mapping[str, Any] | None = None,
    others: Sequence[str] = (),
) -> tuple[Stage, ...]:
    """A stage {name}_{seed} for each seed: run(seed, models) -> values, of all models of the seed.

    depends: what the values depend on besides the models; None for the whole config. others: names
    of more models that it needs, made by earlier stages {other}_{seed}.
    """

    def build(seed: int, artefacts: Mapping[str, Artefact]) -> Compute:
        def compute() -> tuple[None, Mapping[str, Any]]:
            return None, run(seed, load(config, artefacts, seed, others))

        return Compute(compute, plan=functools.partial(plan, config, seed, artefacts))

    return tuple(
        Stage(
            f"{name}_{seed}",
            functools.partial(build, seed),
            tuple(f"{part}_{seed}" for part in ("pretrained", *config.names, *others)),
            None if depends is None else {**depends, "seed": seed},
        )
        for seed in config.repetitions
    )


def plan(
    config: OfImages, seed: int, artefacts: Mapping[str, Artefact], mesh: Any
) -> Mapping[str, Program]:
    """What measuring the models of a seed compiles; merges themselves are small."""
    base = artefacts[f"pretrained_{seed}"].weights()
    trunk, head = split(config.benchmark, shapes_on(base, mesh, config.benchmark.rules))
    return {"accuracy": measuring.program(config.benchmark, head, trunk, config.tasks)}


def load(
    config: OfImages, artefacts: Mapping[str, Artefact], seed: int, others: Sequence[str] = ()
) -> Models:
    """The models of a seed, specialists in the seed's order of tasks."""

    def read(name: str) -> tuple[PyTree, PyTree]:
        return trunk_and_head(config, artefacts[f"{name}_{seed}"])

    base, head = read("pretrained")
    trained = {name: read(name)[0] for name in (*config.order(seed), *others)}
    return Models(
        head,
        base,
        {task: trained[task] for task in config.order(seed)},
        {name: trained[name] for name in others},
    )


def trunk_and_head(config: OfImages, artefact: Artefact) -> tuple[PyTree, PyTree]:
    """Of a finished training."""
    mesh, benchmark = make_mesh(config.mesh), config.benchmark
    return split(benchmark, materialise(artefact.weights(), mesh, benchmark.rules))


def split(benchmark: Benchmark, params: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
    """(trunk, head) of a model's parameters."""
    trunk = {name: part for name, part in params.items() if name != benchmark.head}
    return trunk, params[benchmark.head]
