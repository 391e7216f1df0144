"""How far a student is from its teacher: on held-out text, and on what the student writes."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import text
from kd_jax.data import shapes
from kd_jax.launch import evaluation, generation
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.losses.divergences import forward_kl, reverse_kl
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.distil import distil, token_divergence, tokens
from kd_jax.steps import make_eval_step


class Measured(NamedTuple):
    """What is measured: a student against a teacher on held-out rows of a text.

    prompt: characters of each held-out row that the student goes on from, at temperature 1.
    rows: in a batch.
    """

    text: text.Text
    student: DecoderConfig
    teacher: DecoderConfig
    prompt: int
    rows: int
    seed: int


@functools.cache  # one step for all students, so that they share compilations
def _step(student: DecoderConfig, teacher: DecoderConfig) -> Any:
    parts = {
        "nll": tokens(),
        "forward": token_divergence(lambda s, t, y: forward_kl(s, t)),
        "reverse": token_divergence(lambda s, t, y: reverse_kl(s, t)),
    }
    return make_eval_step(distil(decoder.decoder(student), decoder.decoder(teacher), parts))


def along(measured: Measured, every: int) -> Evaluation:
    """Along a training with frozen["teacher"]: {"nll", "forward", "reverse", "own_..."}.

    forward, reverse: KL(teacher || student) and KL(student || teacher), means over tokens in nats,
    on held-out text; own_: the same on the student's own continuations of held-out beginnings.
    """

    def run(params, carry, frozen) -> Mapping[str, float]:
        return measure(measured, params["model"], frozen["teacher"], mesh_of(params))

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        return _programs(measured, params["model"], frozen["teacher"])

    return Evaluation("held_out", every, run, plan)


def measure(measured: Measured, student: Any, teacher: Any, mesh: Mesh) -> dict[str, float]:
    held_out = text.load(measured.text).held_out
    found = _distances(measured, student, teacher, text.rows(held_out), mesh)
    prompts = held_out[:, : measured.prompt]
    written = generation.generate(
        measured.student,
        student,
        prompts.tolist(),
        max_new=held_out.shape[1] - measured.prompt,
        batch_size=measured.rows,
        mesh=mesh,
        seed=measured.seed,
        temperature=1.0,
    )
    own = np.concatenate([prompts, np.stack(written)], 1).astype(np.int32)
    rows = text.rows(own, given=measured.prompt)
    return found | {
        f"own_{name}": value
        for name, value in _distances(measured, student, teacher, rows, mesh).items()
    }


def _distances(
    measured: Measured, student: Any, teacher: Any, rows: Mapping[str, Any], mesh: Mesh
) -> dict[str, float]:
    params = {"model": student, "aux": {"nll": {}, "forward": {}, "reverse": {}}}
    values, _ = evaluation.evaluate(
        _step(measured.student, measured.teacher),
        params,
        {},
        {"teacher": teacher},
        rows,
        batch_size=measured.rows,
        mesh=mesh,
    )
    return {name: float(values[name]) for name in ("nll", "forward", "reverse")}


def _programs(measured: Measured, student: Any, teacher: Any) -> dict[str, Program]:
    mesh, length = mesh_of(student), measured.text.length
    params = {"model": student, "aux": {"nll": {}, "forward": {}, "reverse": {}}}
    batch: dict[str, jax.ShapeDtypeStruct] = shapes.text(measured.rows, length)
    step = _step(measured.student, measured.teacher)
    return {
        "distances": evaluation.program(step, params, {}, {"teacher": teacher}, batch, mesh=mesh),
        "continuations": generation.program(
            measured.student,
            student,
            max_new=length + 1 - measured.prompt,
            batch_size=measured.rows,
            length=measured.prompt,
            mesh=mesh,
            temperature=1.0,
        ),
    }
