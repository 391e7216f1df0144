"""The stages of teacher_hacking: a teacher, the student's start, responses, and students.

`config` is that of the experiment.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import rows
from experiments.distillation.parts import hacking_measures, oracle
from experiments.distillation.parts.hacking_report import ARMS, MOST, Name
from kd_jax.data import shapes, sources
from kd_jax.launch import generation, weights
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import REPLICATED, Compute, Training, materialise, shapes_on
from kd_jax.losses.divergences import forward_kl
from kd_jax.models import decoder, rollouts
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.on_policy import on_policy
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import Objective


def teacher(config: Any, seed: int, found: Mapping[str, Any]) -> Training:
    return _supervised(config, config.teacher, config.learn_teacher, config.teacher_rows, seed, 1)


def start(config: Any, seed: int, found: Mapping[str, Any]) -> Training:
    return _supervised(config, config.student, config.learn_start, config.student_rows, seed, 2)


def _supervised(
    config: Any, model: DecoderConfig, learning: Learning, count: int, seed: int, which: int
) -> Training:
    """A model from scratch on rows of the oracle; a prompt may come more than once."""

    def data() -> np.ndarray:
        given, _ = _prompts(config, seed)
        drawn = np.random.default_rng((seed, which, 1)).integers(0, len(given), count)
        return oracle.responses(_table(config), given[drawn], config.length + 1, (seed, which))

    objective = supervise(decoder.decoder(model), {"nll": next_token_nll})
    return _training(config, model, objective, learning, seed, data)


def responses(config: Any, seed: int, found: Mapping[str, Any]) -> Compute:
    """What the teacher answers to the prompts, several times, and to those held out; and how far
    it is from the oracle itself."""
    teacher, rules = found[f"teacher_{seed}"].weights(), decoder.rules(config.teacher)
    asked_for: dict[str, Any] = {
        "batch_size": config.score_batch,
        "max_new": config.length + 1 - oracle.PROMPT,
        "temperature": 1.0,
    }

    def run_() -> tuple[None, Mapping[str, Any]]:
        mesh = make_mesh(config.mesh)
        params = materialise(teacher, mesh, rules)
        given, held_out = _prompts(config, seed)
        asked = np.concatenate([*[given[: config.prompts]] * MOST, held_out])
        said = generation.generate(
            config.teacher, params, asked.tolist(), mesh=mesh, seed=seed, **asked_for
        )
        tokens = np.concatenate([asked, np.stack(said)], 1).astype(np.int32)
        train, rest = np.split(tokens, [MOST * config.prompts])
        table = materialise(weights.from_arrays(_table(config)), mesh)
        ours = _of_oracle(config, seed)
        golden = hacking_measures.golden(
            config.teacher, params, table, ours, config.score_batch, mesh
        )
        return None, {
            "train": train.reshape(MOST, config.prompts, -1),
            "held_out": rest,
            "golden": golden,
        }

    def plan(mesh):
        placed = shapes_on(teacher, mesh, rules)
        length = oracle.PROMPT
        program = generation.program(config.teacher, placed, length=length, mesh=mesh, **asked_for)
        return {"responses": program}

    return Compute(run_, plan=plan)


def student(config: Any, name: Name, seed: int, found: Mapping[str, Any]) -> Training:
    arm, said = ARMS[name], found[f"responses_{seed}"]
    models = config.student, config.teacher

    def data() -> np.ndarray:
        chosen = said.rows["train"][: arm.responses, : config.prompts // arm.fewer]
        return chosen.reshape(-1, config.length + 1)

    @functools.cache
    def held() -> hacking_measures.Held:
        return hacking_measures.Held(_of_oracle(config, seed), said.rows["held_out"])

    answers = {"max_new": config.length + 1 - oracle.PROMPT}
    prepare = None
    if arm.fresh == "teacher":
        write = functools.partial(rollouts.continued, config.teacher, **answers)
        prepare = on_policy(write, share=1.0, policy=frozen_weights("teacher"))
    elif arm.fresh == "student":
        write = functools.partial(rollouts.continued, config.student, **answers)
        prepare = on_policy(write, share=1.0)
    part = token_divergence(lambda s, t, y: forward_kl(s, t))
    ours, theirs = (decoder.decoder(model) for model in models)
    objective = distil(ours, theirs, {"kl": part})
    every = max(1, config.learn.steps // config.evaluations)
    measured = hacking_measures.Measured(*models, held, config.score_batch, config.length)
    return _training(config, config.student, objective, config.learn, seed, data)._replace(
        weights=found[f"start_{seed}"].weights(),
        frozen=weights.joined(
            teacher=found[f"teacher_{seed}"].weights(),
            oracle=weights.from_arrays(_table(config)),
        ),
        frozen_rules={"teacher": decoder.rules(config.teacher), "oracle": REPLICATED},
        prepare=prepare,
        evaluations=(hacking_measures.along(measured, every),),
    )


def _training(
    config: Any,
    model: DecoderConfig,
    objective: Objective,
    learning: Learning,
    seed: int,
    data: Callable[[], np.ndarray],
) -> Training:
    """A model from scratch on rows [N, length + 1], of which the prompts are not predicted."""

    @functools.cache
    def source() -> sources.Source:
        examples = rows(data(), given=oracle.PROMPT)
        return sources.array_batches(
            examples, seed=seed, name="rows", batch_size=learning.batch_size
        )

    return Training(
        step=make_train_step(objective, learning.optimizer()),
        weights=weights.from_init(decoder.decoder(model).init, jax.random.key(seed)),
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.text(learning.batch_size, config.length),
        batch_size=learning.batch_size,
        steps=learning.steps,
        rules=decoder.rules(model),
        seed=seed,
    )


def _table(config: Any) -> np.ndarray:
    return oracle.table(config.student.vocab, config.sharpness, 0)


def _prompts(config: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Those to learn from and those held out."""
    every = oracle.prompts(config.student.vocab, config.student.vocab**oracle.PROMPT, seed)
    return every[config.held_out :], every[: config.held_out]


def _of_oracle(config: Any, seed: int) -> np.ndarray:
    """The oracle's responses to the held-out prompts."""
    _, held_out = _prompts(config, seed)
    return oracle.responses(_table(config), held_out, config.length + 1, (seed, 0))
