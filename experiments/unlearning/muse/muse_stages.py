"""The stages of muse_small: learning by heart, forgetting, and undoing by a task vector.

`config` is that of the experiment.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import Make, Setting
from experiments.unlearning.muse import measures, plays
from kd_jax.data import pairs, shapes, sources
from kd_jax.launch import weights
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Training, materialise
from kd_jax.merging.arithmetic import negate
from kd_jax.models import decoder
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import Objective


def nll(s: Setting) -> Objective:
    """Learning a text batch by heart."""
    return supervise(s.model, {"nll": next_token_nll}, policy=s.policy)


def learning(config: Any, seed: int, retained_only: bool, _: Any) -> Training:
    model = decoder.decoder(config.model)
    start = weights.from_init(model.init, jax.random.key(seed))
    count = config.data.retain + (0 if retained_only else config.data.total)

    def rows() -> Any:
        found = plays.load(config.data)
        return plays.rows([*([] if retained_only else found.forget), *found.retain])

    return _by_heart(config, seed, start, config.finetune, count, rows, tuple(config.requests))


def reinforcing(config: Any, seed: int, start: str, first: int, last: int, found: Any) -> Training:
    count = (last - first + 1) * config.data.forget

    def rows() -> Any:
        return plays.rows(_asked(config, first, last))

    return _by_heart(config, seed, found[start].weights(), config.reinforce, count, rows, (last,))


def _asked(config: Any, first: int, last: int) -> list[list[int]]:
    """The passages of some requests."""
    per = config.data.forget
    return plays.load(config.data).forget[(first - 1) * per : last * per]


def _by_heart(
    config: Any,
    seed: int,
    start: weights.Weights,
    learning: Learning,
    count: int,
    rows: Callable[[], Any],
    requests: tuple[int, ...],
) -> Training:
    @functools.cache
    def source() -> sources.Source:
        return sources.array_batches(
            rows(), seed=seed, name="learn", batch_size=learning.batch_size
        )

    batch = shapes.text(learning.batch_size, config.data.length)
    return _training(config, seed, start, nll, learning, count, source, batch, requests, 1)


def forgetting(
    config: Any, seed: int, make: Make, start: str, first: int, last: int, found: Any
) -> Training:
    learning = config.unlearn

    @functools.cache
    def source() -> sources.Source:
        parts = {
            "forget": {"forget": plays.rows(_asked(config, first, last))},
            "retain": {"retain": plays.rows(plays.load(config.data).retain)},
        }
        return pairs.forget_retain(**parts, seed=seed, batch_size=learning.batch_size)

    batch = {
        part: shapes.text(learning.batch_size, config.data.length) for part in ("forget", "retain")
    }
    count = (last - first + 1) * config.data.forget
    begin, measured = found[start].weights(), config.evaluations
    return _training(
        config, seed, begin, make, learning, count, source, batch, (last,), measured, begin
    )


def _training(
    config: Any,
    seed: int,
    start: weights.Weights,
    make: Callable[[Setting], Objective],
    learning: Learning,
    count: int,
    source: Callable[[], sources.Source],
    batch: Any,
    requests: tuple[int, ...],
    evaluations: int,
    reference: weights.Weights | None = None,
) -> Training:
    """requests: after so many, the model is measured; evaluations: how often along the training."""
    steps, model = learning.steps(count), decoder.decoder(config.model)
    policy = frozen_weights("reference")
    setting = Setting(model, own_weights, policy, config.beta, config.model.depth, steps)
    rules = decoder.rules(config.model)
    return Training(
        step=make_train_step(make(setting), learning.optimizer(count)),
        weights=start,
        frozen=None if reference is None else weights.joined(reference=reference),
        frozen_rules={} if reference is None else {"reference": rules},
        batches=lambda step, rows: source()(step, rows),
        batch=batch,
        batch_size=learning.batch_size,
        steps=steps,
        rules=rules,
        seed=seed,
        evaluations=(measures.along(config, requests, max(1, steps // evaluations)),),
    )


def negating(config: Any, start: str, better: str, last: int, found: Any) -> Compute:
    rules = decoder.rules(config.model)

    def run_it() -> tuple[Any, Mapping[str, Any]]:
        mesh = make_mesh(config.mesh)
        base, reinforced = (materialise(found[n].weights(), mesh, rules) for n in (start, better))
        unlearnt = negate(base, reinforced)
        return unlearnt, measures.measure(config, unlearnt, mesh, (last,))

    begin = found[start].weights()
    plan = functools.partial(measures.planned, config, begin)
    return Compute(run_it, begin.abstract, plan)
