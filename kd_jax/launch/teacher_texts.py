"""Sequence-level distillation: text that a teacher wrote, to be learnt like any other.

Kim and Rush 2016 (arXiv 1606.07947) take the teacher's beam search for the mode of its distribution
over sequences; language models are mostly sampled from. What was written is kept with hashes of the
teacher and of the prompts, and refused to whoever has others:

    rows = teacher_texts.rows_of(
        found["written"], prompts=prompts, teacher=precompute.model_hash(found["teacher"])
    )
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from kd_jax.data.collate import Example, collate_qa
from kd_jax.launch import generation, precompute
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Program, Stage, materialise, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig

PyTree = Any
Found = Mapping[str, Artefact]
Prompts = Sequence[Sequence[int]]


def stage(
    name: str,
    *,
    config: DecoderConfig,
    weights: Callable[[Found], Weights],
    teacher: Callable[[Found], str],
    prompts: Callable[[], Prompts],
    prompt_length: int,
    length: int,
    eos_id: int | None,
    batch_size: int,
    mesh: MeshConfig,
    seed: int,
    max_new: int,
    needs: tuple[str, ...] = (),
    depends: Any = None,
    **sampling: Any,
) -> Stage:
    """A stage in which a teacher goes on from each prompt; `rows_of` reads its artefact.

    weights(artefacts): the teacher's; teacher(artefacts) -> its `precompute.model_hash`. prompts()
    -> token ids, loaded when the stage runs; prompt_length: what they are padded to. The rest as of
    `write`; needs, depends as of a Stage.
    """
    settings = {"batch_size": batch_size, "max_new": max_new, **sampling}

    def score(found: Found, padded: Mapping[str, np.ndarray]) -> dict[str, Any]:
        on = make_mesh(mesh)
        own = materialise(weights(found), on, decoder.rules(config))
        given = [row[:n] for row, n in zip(padded["tokens"], padded["lengths"], strict=True)]
        settled = {"prompt_length": prompt_length, "length": length, "eos_id": eos_id, "seed": seed}
        return write(config, own, given, mesh=on, **settled, **settings)

    def plan(found: Found, on: Mesh) -> Mapping[str, Program]:
        shapes = shapes_on(weights(found), on, decoder.rules(config))
        stop = () if eos_id is None else (eos_id,)
        program = generation.program(
            config, shapes, length=prompt_length, mesh=on, stop=stop, **settings
        )
        return {"texts": program}

    return precompute.stage(
        name,
        score=score,
        data=lambda: _padded(prompts()),
        model=teacher,
        needs=needs,
        depends=depends,
        plan=plan,
    )


def rows_of(artefact: Artefact, *, prompts: Prompts, teacher: str) -> dict[str, np.ndarray]:
    """The text batch that a `stage` kept. UserError where prompts or teacher are others."""
    return precompute.rows_of(artefact, data=precompute.data_hash(_padded(prompts)), model=teacher)


def write(
    config: DecoderConfig,
    weights: PyTree,
    prompts: Prompts,
    *,
    length: int,
    eos_id: int | None,
    batch_size: int,
    mesh: Mesh,
    seed: int,
    max_new: int,
    prompt_length: int | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """A text batch of each prompt and its continuation, and "sampling": what decided the texts.

    inputs, targets i32 [N, T], weights f32 [N, T], index i32 [N] with T = length: weights are 1 on
    what the teacher wrote, its end-of-sequence token included, and 0 on prompts and padding. A text
    cut short by max_new or T has no such token at its end: it is not learnt that it ends there.

    prompt_length: what prompts are padded to, by default the longest's. The rest as of
    `generation.generate`; for several samples of a prompt give it several times. ValueError for a
    prompt that fills T.
    """
    stop = () if eos_id is None else (eos_id,)
    settings = {"batch_size": batch_size, "max_new": max_new, "stop": stop, **sampling}
    texts = generation.generate(
        config, weights, prompts, length=prompt_length, mesh=mesh, seed=seed, **settings
    )
    answers = [text.tolist() for text in texts]
    for text in answers:
        if eos_id is not None and len(text) < max_new:
            text.append(eos_id)  # `generate` leaves it out
    examples = [Example(list(x), y) for x, y in zip(prompts, answers, strict=True)]
    rows = collate_qa(examples, length=length, eos_id=None)
    how = {"seed": seed, "max_new": max_new, "eos_id": eos_id, "length": length, **sampling}
    return {**rows, "sampling": how}


def _padded(prompts: Prompts) -> dict[str, np.ndarray]:
    """tokens i32 [N, P], zeros behind the end of each, and lengths i32 [N]."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), int(lengths.max(initial=0))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return {"tokens": tokens, "lengths": lengths}
