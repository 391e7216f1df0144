"""What muse_small measures of a model, along a training and at its end.

`config` is that of the experiment.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from experiments.unlearning.muse import plays
from kd_jax.data import shapes
from kd_jax.evaluation import muse
from kd_jax.launch import evaluation, generation
from kd_jax.launch.stages import Evaluation, Program, mesh_of, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.score import answer_statistics
from kd_jax.steps import make_eval_step


@functools.cache  # one step for all stages, so that they share compilations
def _scoring(config: DecoderConfig) -> Any:
    return make_eval_step(answer_statistics(decoder.decoder(config)))


def along(config: Any, requests: tuple[int, ...], every: int) -> Evaluation:
    """The figures along a training."""

    def run(params, carry, frozen) -> Mapping[str, float]:
        return measure(config, params["model"], mesh_of(params), requests)

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        return _programs(config, params["model"])

    return Evaluation("muse", every, run, plan)


def measure(config: Any, weights: Any, mesh: Mesh, requests: Sequence[int]) -> dict[str, float]:
    """The figures after so many requests: {"verbatim_2": ...}.

    verbatim: MUSE's, of the second half of passages to forget after the first, in percent.
    recall, recall_retain: the share of tokens that the model finds likeliest after the true ones
    before them, in percent. auc: MUSE's, in [0, 1], by the min-k% loss (k = 0.4) of a whole passage
    but its first and its last token; MUSE's has the last one too.
    """
    passages = plays.load(config.data)
    forget = passages.forget[: max(requests) * config.data.forget]
    _, rows = evaluation.evaluate(
        _scoring(config.model),
        {"model": weights, "aux": {}},
        {},
        {},
        plays.rows([*forget, *passages.holdout, *passages.retain]),
        batch_size=config.score_batch,
        mesh=mesh,
    )
    ends = np.cumsum([len(forget), len(passages.holdout)])
    members, others, _ = np.split(rows["min_k"], ends)
    recall, _, kept = np.split(100 * rows["memorisation"], ends)
    prompts, truths = zip(*map(plays.halves, forget), strict=True)
    written = generation.generate(
        config.model,
        weights,
        prompts,
        max_new=len(truths[0]),
        batch_size=config.score_batch,
        mesh=mesh,
    )
    texts = ([passages.pieces.decode(x) for x in side] for side in (written, truths))
    verbatim = muse.verbatim_memorisation(*texts)
    found = {}
    for number in requests:
        count = number * config.data.forget
        found |= {
            f"verbatim_{number}": verbatim[:count].mean(),
            f"recall_{number}": recall[:count].mean(),
            f"auc_{number}": muse.forget_auc(members[:count], others),
            f"recall_retain_{number}": kept.mean(),
        }
    return {name: float(value) for name, value in found.items()}


def planned(config: Any, weights: Weights, mesh: Mesh) -> Mapping[str, Program]:
    """What `measure` compiles, for a Compute."""
    return _programs(config, shapes_on(weights, mesh, decoder.rules(config.model)))


def _programs(config: Any, weights: Any) -> dict[str, Program]:
    mesh, length, rows = mesh_of(weights), config.data.length, config.score_batch
    params, batch = {"model": weights, "aux": {}}, shapes.text(rows, length)
    prompt, truth = plays.halves([0] * (length + 1))
    writing = generation.program(
        config.model,
        weights,
        max_new=len(truth),
        batch_size=rows,
        length=len(prompt),
        mesh=mesh,
    )
    scores = evaluation.program(_scoring(config.model), params, {}, {}, batch, mesh=mesh)
    return {"scores": scores, "continuations": writing}
