"""Stages of offline_topk: what is stored of the teacher, and students that learn from it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import runs
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.config import Common
from kd_jax.data import shapes, sources
from kd_jax.data.top_k_records import Layout
from kd_jax.launch import evaluation, precompute, teacher_texts, top_k_cache
from kd_jax.launch.config import identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import (
    Compute,
    Evaluation,
    Program,
    Stage,
    Training,
    materialise,
    mesh_of,
    shapes_on,
)
from kd_jax.losses import top_k
from kd_jax.losses.divergences import forward_kl
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.distil import distil, token_divergence, tokens
from kd_jax.objectives.offline import Rule, stored_top_k
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_eval_step
from kd_jax.types import Objective

Found = Mapping[str, Any]
RuleName = Literal["tail", "renormalised", "partial"]
TextName = Literal["alone", "sampled", "same"]


class Labelled(NamedTuple):
    label: str
    rule: Rule


RULES: dict[RuleName, Labelled] = {
    "tail": Labelled("the rest as one", top_k.top_k_kl_with_tail),
    "renormalised": Labelled(
        "renormalised", lambda z, ids, log_p, tail: top_k.top_k_kl_renormalised(z, ids, log_p)
    ),
    "partial": Labelled(
        "left out", lambda z, ids, log_p, tail: top_k.top_k_kl_partial(z, ids, log_p)
    ),
}
TEXTS: dict[TextName, str] = {
    "alone": "the whole text alone",
    "sampled": "text of the teacher's",
    "same": "as much of the text",
}


def cache(config: Common, k: int, bits: int) -> Stage:
    """The teacher's k likeliest characters at every position of the text."""
    return top_k_cache.stage(
        f"cache_{k}",
        model=decoder.decoder(config.teacher),
        weights=lambda found: found["teacher"].weights(),
        rules=decoder.rules(config.teacher),
        teacher=lambda found: precompute.model_hash(found["teacher"]),
        data=lambda: _rows(config.text),
        length=config.text.length,
        tokenizer=_TOKENIZER,
        layout=Layout(k, config.teacher.vocab, bits),
        batch_size=config.score_batch,
        mesh=config.mesh,
        needs=("teacher",),
        depends={"bits": bits},
    )


def written(config: Common, seed: int, samples: int) -> Stage:
    """Rows that the teacher writes at temperature 1, from beginnings in the text."""
    return teacher_texts.stage(
        f"written_{seed}",
        config=config.teacher,
        weights=lambda found: found["teacher"].weights(),
        teacher=lambda found: precompute.model_hash(found["teacher"]),
        prompts=lambda: _prompts(config, samples),
        prompt_length=config.prompt,
        length=config.text.length,
        eos_id=None,  # characters have no end
        batch_size=config.score_batch,
        mesh=config.mesh,
        seed=seed,
        max_new=config.text.length + 1 - config.prompt,
        temperature=1.0,
        needs=("teacher",),
        depends={"prompt": config.prompt, "samples": samples, "seed": seed},
    )


def of_cache(config: Common, rule: RuleName, k: int, bits: int, seed: int) -> tuple[Stage, Stage]:
    """A student of what is stored, and how far from the teacher it is."""
    layout = Layout(k, config.teacher.vocab, bits)

    def build(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            rows = _rows(config.text)
            about = top_k_cache.About(
                precompute.model_hash(found["teacher"]),
                precompute.data_hash(rows),
                _TOKENIZER,
                layout,
            )
            stored = top_k_cache.opened(found[f"cache_{k}"].files, about)
            return top_k_cache.joined(_source(config, rows, seed), stored)

        term = stored_top_k(RULES[rule].rule)
        objective = supervise(decoder.decoder(config.student), {"kd": term})
        batch = top_k_cache.batch_shapes(config.learn.batch_size, config.text.length, k)
        return _training(config, objective, seed, source)._replace(batch=batch)

    name = f"{rule}_{k}_{seed}"
    needs = ("teacher", f"cache_{k}")
    return _student(config, name, build, needs, {"rule": rule, "seed": seed})


def of_text(config: Common, name: TextName, seed: int, samples: int) -> tuple[Stage, Stage]:
    """A student of text, and how far from the teacher it is."""

    def rows(found: Found) -> dict[str, Any]:
        if name == "alone":
            return _rows(config.text)
        if name == "same":
            return text_lib.rows(_beginnings(config, samples), given=config.prompt)
        return teacher_texts.rows_of(
            found[f"written_{seed}"],
            prompts=_prompts(config, samples),
            teacher=precompute.model_hash(found["teacher"]),
        )

    def build(found: Found) -> Training:
        @functools.cache
        def source() -> sources.Source:
            return _source(config, rows(found), seed)

        objective = supervise(decoder.decoder(config.student), {"nll": next_token_nll})
        return _training(config, objective, seed, source)

    depends = {"text": identity(config.text), "learns": name, "seed": seed}
    if name == "alone":
        return _student(config, f"alone_{seed}", build, (), depends)
    depends |= {"prompt": config.prompt, "samples": samples}
    needs = ("teacher", f"written_{seed}") if name == "sampled" else ()
    return _student(config, f"{name}_{seed}", build, needs, depends)


_TOKENIZER = top_k_cache.tokenizer_hash(*text_lib.CHARACTERS)


def _rows(text: text_lib.Text) -> dict[str, Any]:
    return text_lib.rows(text_lib.load(text).train)


def _beginnings(config: Common, samples: int) -> np.ndarray:
    """Rows of the text, from all of it, that are gone on from."""
    train = text_lib.load(config.text).train
    if samples > len(train):
        raise ValueError(f"samples: got {samples}, takes up to the text's rows, {len(train)}")
    return train[np.linspace(0, len(train) - 1, samples).astype(int)]


def _prompts(config: Common, samples: int) -> list[list[int]]:
    return _beginnings(config, samples)[:, : config.prompt].tolist()


def _source(config: Common, rows: dict[str, Any], seed: int) -> sources.Source:
    return sources.array_batches(rows, seed=seed, name="text", batch_size=config.learn.batch_size)


def _training(
    config: Common, objective: Objective, seed: int, source: Callable[[], sources.Source]
) -> Training:
    """Of a student alone."""
    measured = Evaluation(
        "held_out",
        max(1, config.learn.steps // config.evaluations),
        functools.partial(_nll, config),
        functools.partial(_planned_nll, config),
    )
    return runs.training(config, config.student, objective, config.learn, seed)._replace(
        batches=lambda step, rows: source()(step, rows), evaluations=(measured,)
    )


def _student(
    config: Common,
    name: str,
    build: Callable[[Found], Training],
    needs: tuple[str, ...],
    depends: dict[str, Any],
) -> tuple[Stage, Stage]:
    shared = {x: identity(getattr(config, x)) for x in ("student", "learn")}
    measured = {"evaluations": config.evaluations, "score_batch": config.score_batch}
    return (
        Stage(name, build, needs, shared | measured | depends),
        Stage(
            f"{name}_score",
            functools.partial(_score, config, name),
            ("teacher", name),
            {"score_batch": config.score_batch},
        ),
    )


def _score(config: Common, name: str, found: Found) -> Compute:
    """KL(teacher || student) and NLL on held-out text, nats a token, means over tokens."""
    weights = {"teacher": found["teacher"].weights(), "student": found[name].weights()}
    models = {"teacher": config.teacher, "student": config.student}
    step = _distance(config.student, config.teacher)

    def both(of: Callable[..., Any], mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
        made = {x: of(w, mesh, decoder.rules(models[x])) for x, w in weights.items()}
        aux = {"nll": {}, "forward": {}}
        return {"model": made["student"], "aux": aux}, {"teacher": made["teacher"]}

    def run() -> tuple[None, dict[str, float]]:
        mesh = make_mesh(config.mesh)
        params, frozen = both(materialise, mesh)
        rows = text_lib.rows(text_lib.load(config.text).held_out)
        values, _ = evaluation.evaluate(
            step, params, {}, frozen, rows, batch_size=config.score_batch, mesh=mesh
        )
        return None, {x: values[x] for x in ("forward", "nll")}

    def plan(mesh: Mesh) -> dict[str, Program]:
        params, frozen = both(shapes_on, mesh)
        batch = shapes.text(config.score_batch, config.text.length)
        return {"distance": evaluation.program(step, params, {}, frozen, batch, mesh=mesh)}

    return Compute(run, plan=plan)


@functools.cache  # one step for all students, so that they share compilations
def _distance(student: DecoderConfig, teacher: DecoderConfig) -> Any:
    forward = token_divergence(lambda s, t, y: forward_kl(s, t))
    models = (decoder.decoder(student), decoder.decoder(teacher))
    return make_eval_step(distil(*models, {"nll": tokens(), "forward": forward}))


@functools.cache
def _alone(student: DecoderConfig) -> Any:
    return make_eval_step(supervise(decoder.decoder(student), {"nll": next_token_nll}))


def _nll(config: Common, params: Any, carry: Any, frozen: Any) -> dict[str, float]:
    rows = text_lib.rows(text_lib.load(config.text).held_out)
    values, _ = evaluation.evaluate(
        _alone(config.student),
        {"model": params["model"], "aux": {}},
        {},
        {},
        rows,
        batch_size=config.score_batch,
        mesh=mesh_of(params),
    )
    return {"nll": values["nll"]}


def _planned_nll(config: Common, params: Any, carry: Any, frozen: Any) -> dict[str, Program]:
    batch: dict[str, jax.ShapeDtypeStruct] = shapes.text(config.score_batch, config.text.length)
    weights = {"model": params["model"], "aux": {}}
    step = _alone(config.student)
    return {"nll": evaluation.program(step, weights, {}, {}, batch, mesh=mesh_of(params))}
