"""The trainings of scalearn_fewshot: a trunk, the sources' adapters, all that few images train.

`config` is that of the experiment.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.merging.common.tasks import TASKS, Benchmark, changed, digits, mixed
from experiments.merging.parts import adapted
from experiments.merging.parts.adapted import Combination
from kd_jax import optim
from kd_jax.data import arrays, shapes, sources
from kd_jax.launch import evaluation, weights
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.stages import REPLICATED, Evaluation, Program, Training, mesh_of
from kd_jax.models import residual_mlp
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_accuracy, label_cross_entropy
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Frozen, Objective, Params, Policy, PyTree

POOL = tuple(TASKS)[:5]  # each seed has one of them as its target, the others as sources
MEASURED = 360  # images in a batch


@functools.cache
def combinations(adapter: int, dropout: float) -> dict[str, Combination]:
    vector, number = {"vector": True, "dropout": dropout}, {"vector": False, "dropout": 0.0}
    return {
        "own": adapted.single(adapter),
        "vectors": adapted.scaled("ScaLearn", shared=False, **vector),
        "numbers": adapted.scaled("ScaLearnUniform", shared=False, **number),
        "vectors_shared": adapted.scaled("ScaLearn++", shared=True, **vector),
        "numbers_shared": adapted.scaled("ScaLearnUniform++", shared=True, **number),
        "fusion": adapted.fusion(),
        "average": adapted.average(),
    }


def target(seed: int) -> str:
    return POOL[seed % len(POOL)]


def sources_of(seed: int) -> tuple[str, ...]:
    return tuple(task for task in POOL if task != target(seed))


@functools.cache
def _benchmark() -> Benchmark:
    return digits((1,))  # of which only the images are used


def pretrained(config: Any, seed: int, _: Any) -> Training:
    model = residual_mlp.residual_mlp(config.sizes)
    return _training(
        config,
        supervise(model, {"ce": label_cross_entropy}),
        weights.from_init(model.init, jax.random.key(seed)),
        lambda: mixed(_benchmark(), sources_of(seed), config.pretraining_images),
        config.rate,
        config.pretraining_steps,
        seed,
    )


def source_adapter(config: Any, seed: int, task: str, artefacts: Mapping[str, Any]) -> Training:
    """A source's adapter, with a head of its own that is then forgotten."""
    return _combined(
        config,
        "own",
        artefacts[f"pretrained_{seed}"].weights(),
        (),
        lambda: changed(_benchmark(), task, "train"),
        config.adapter_steps,
        seed,
    )


def few(config: Any, seed: int, name: str, artefacts: Mapping[str, Any]) -> Training:
    """A combination on the few images of the target."""

    def images() -> dict[str, np.ndarray]:
        train = changed(_benchmark(), target(seed), "train")
        rng = np.random.Generator(np.random.Philox(key=seed))
        return arrays.take(train, rng.permutation(arrays.size(train))[: config.few])

    names = [*(f"adapter_{task}_{seed}" for task in sources_of(seed)), f"own_{seed}"]
    adapters = () if name == "own" else tuple(artefacts[x].weights() for x in names)
    trunk = artefacts[f"pretrained_{seed}"].weights()
    training = _combined(config, name, trunk, adapters, images, config.steps, seed)
    return training._replace(evaluations=(_held_out(config, name, seed),))


def _policy(combination: Combination) -> Policy:
    def assembled(params: Params, frozen: Frozen) -> PyTree:
        # The sources' heads lie beside their adapters.
        adapters = [frozen[name]["own"] for name in sorted(frozen) if name != "trunk"]
        stacked = adapted.stacked(adapters) if adapters else {}
        return adapted.assemble(combination, frozen["trunk"], stacked, params["model"])

    return assembled


@functools.cache  # one object for each, so that its evaluation is compiled once
def _objective(sizes: residual_mlp.ResidualMLPConfig, combination: Combination) -> Objective:
    return supervise(
        adapted.model(sizes, combination),
        {"ce": label_cross_entropy},
        metrics={"accuracy": label_accuracy},
        policy=_policy(combination),
    )


@functools.cache
def _eval_step(sizes: residual_mlp.ResidualMLPConfig, combination: Combination) -> Any:
    return make_eval_step(_objective(sizes, combination))


def _combined(
    config: Any,
    name: str,
    trunk: weights.Weights,
    adapters: Sequence[weights.Weights],
    images: Callable[[], Mapping[str, np.ndarray]],
    steps: int,
    seed: int,
) -> Training:
    """A combination and a head on a frozen trunk."""
    combination = config.combinations[name]
    start = functools.partial(adapted.start, combination, config.sizes, len(adapters))
    frozen = {"trunk": trunk} | {f"adapter_{i}": x for i, x in enumerate(adapters)}
    training = _training(
        config,
        _objective(config.sizes, combination),
        weights.from_init(start, jax.random.key(seed)),
        images,
        config.scale_rate if name.startswith(("vectors", "numbers")) else config.rate,
        steps,
        seed,
    )
    return training._replace(
        rules=REPLICATED,
        frozen=weights.joined(**frozen),
        frozen_rules=dict.fromkeys(frozen, REPLICATED),
    )


def _training(
    config: Any,
    objective: Objective,
    start: weights.Weights,
    images: Callable[[], Mapping[str, np.ndarray]],
    rate: float,
    steps: int,
    seed: int,
) -> Training:
    schedule = optim.warmup_cosine(rate, warmup=steps // 20, steps=steps)

    @functools.cache
    def source() -> sources.Source:
        return sources.array_batches(
            images(), seed=seed, name="images", batch_size=config.batch_size
        )

    return Training(
        step=make_train_step(objective, optim.adamw(schedule, weight_decay=1e-4)),
        weights=start,
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.images(config.batch_size, 8),
        batch_size=config.batch_size,
        steps=steps,
        rules=residual_mlp.RULES,
        seed=seed,
    )


def _held_out(config: Any, name: str, seed: int) -> Evaluation:
    """Accuracy on the target's held-out images, at the end."""
    step = _eval_step(config.sizes, config.combinations[name])

    def measure(params, carry, frozen) -> Mapping[str, float]:
        examples = changed(_benchmark(), target(seed), config.split)
        mesh = mesh_of(params["model"]["head"])
        values, _ = evaluate(step, params, {}, frozen, examples, batch_size=MEASURED, mesh=mesh)
        return {"accuracy": 100 * values["accuracy"], "ce": values["ce"]}

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        batch, mesh = shapes.images(MEASURED, 8), mesh_of(params["model"]["head"])
        return {"accuracy": evaluation.program(step, params, {}, frozen, batch, mesh=mesh)}

    return Evaluation("held_out", config.steps, measure, plan)
