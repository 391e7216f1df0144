"""A shallow student cut from a pretrained language model, with and without its teacher.

Papers: Hinton et al. 2015 (arXiv 1503.02531); layers as in DistilBERT (arXiv 1910.01108). The
student is some layers of SmolLM2-135M, evenly spread, with its embedding and head. It is trained on
the text alone, by forward KL to the whole model, and by the mean of both: on the same batches, at
the same rate, for the same number of steps.

Measured is the perplexity of held-out text.

Claim: the student predicts the text better with the teacher than without.

    python -m experiments.distillation.smollm_student smoke     # a small model: 20 s
    python -m experiments.distillation.smollm_student laptop    # SmolLM2-135M, tiny Shakespeare
    python -m experiments.distillation.smollm_student laptop --model FOLDER --depth 12

`laptop` needs the model (python -m kd_jax.formats.fetch smollm2) and the file of tiny Shakespeare
(environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.distillation.common import text as text_lib
from experiments.distillation.common.config import SMALL
from experiments.distillation.common.learning import Learning
from experiments.distillation.parts import smollm_report
from kd_jax.data import shapes, sources
from kd_jax.launch import evaluation, run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.language import Language, open_language
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import Compute, Evaluation, Stage, Training, materialise, mesh_of
from kd_jax.launch.weights import Weights
from kd_jax.losses.divergences import forward_kl
from kd_jax.models import decoder, sizes
from kd_jax.models.config import DecoderConfig
from kd_jax.models.truncated import selected, spread, truncated_config
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.score import sequence_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Model, Objective


class Arm(NamedTuple):
    """share: the teacher's in the loss."""

    label: str
    share: float


ARMS = {
    "alone": Arm("text alone", 0.0),
    "half": Arm("text and teacher", 0.5),
    "taught": Arm("teacher alone", 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    model: str | None = None
    """The teacher: smollm2, a Hugging Face folder or a GGUF file; none is `decoder` untrained."""
    decoder: DecoderConfig
    """The teacher's shape without `model`, and for a plan."""
    depth: int
    """Layers of the student."""
    text: text_lib.Text
    learn: Learning
    evaluations: int = 4
    """How often a student is measured."""
    score_batch: int = 8
    """Rows measured at once."""
    seed: int = 0
    """Of the order of rows."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "depth", "evaluations", "score_batch")


PRESETS = {
    "smoke": Config(
        decoder=dataclasses.replace(SMALL, depth=2),
        depth=1,
        text=text_lib.Text(length=32, held_out=16),
        learn=Learning(rate=1e-2, steps=20, batch_size=8),
        evaluations=1,
    ),
    "laptop": Config(
        model="smollm2",
        decoder=dataclasses.replace(sizes.SMOLLM2_135M, remat=False),
        depth=6,
        text=text_lib.Text(shakespeare=True, length=128, held_out=32),
        learn=Learning(rate=5e-4, steps=80, batch_size=4),
        evaluations=2,
        seed=10,
    ),
}


CLAIMS = smollm_report.CLAIMS


def stages(config: Config) -> tuple[Stage, ...]:
    whole = _opened(config)
    shared = {
        "model": [config.model, identity(config.decoder)],
        "text": identity(config.text),
        "rows": config.score_batch,
    }
    learnt = {
        "learn": identity(config.learn),
        "student": [config.depth, config.evaluations, config.seed],
    }
    score = Stage("teacher", lambda _: _teacher(config, whole), (), shared)
    return (score,) + tuple(
        Stage(
            name,
            lambda _, name=name: _student(config, whole, name),
            (),
            shared | learnt | {"arm": name},
        )
        for name in ARMS
    )


def _opened(config: Config) -> Language:
    if config.model is not None:
        return open_language(config.model, config.decoder)
    model = decoder.decoder(config.decoder)
    start = weights.from_init(model.init, jax.random.key(config.seed))
    return Language(config.decoder, model, lambda: None, start)


@functools.cache
def _corpus(text: text_lib.Text, tokenizer: Any) -> text_lib.Corpus:
    read = tokenizer()
    return text_lib.load(text) if read is None else text_lib.corpus(text, read.encode)


def _cut(whole: Language, depth: int) -> Language:
    """A model of some of its layers."""
    config = truncated_config(whole.config, depth)
    layers = spread(whole.config, depth)

    def choose(params: Any) -> Any:
        return selected(whole.config, params, layers)

    def make(placed: Any) -> Any:
        params = materialise(whole.weights, mesh_of(placed), decoder.rules(whole.config))
        return jax.jit(choose, out_shardings=shardings_of(placed))(params)

    abstract = jax.eval_shape(choose, whole.weights.abstract)
    return whole._replace(
        config=config, model=decoder.decoder(config), weights=Weights(abstract, make)
    )


def _teacher(config: Config, whole: Language) -> Compute:
    """The whole model's score."""
    rules = decoder.rules(whole.config)

    def score() -> tuple[None, Mapping[str, Any]]:
        params = materialise(whole.weights, make_mesh(config.mesh), rules)
        return None, _score(config, whole, params)

    return Compute(score)


@functools.cache  # one step for all students, so that they share compilations
def _step(model: DecoderConfig) -> Any:
    return make_eval_step(sequence_scores(decoder.decoder(model)))


def _score(config: Config, language: Language, params: Any) -> dict[str, Any]:
    """The mean NLL of held-out text in nats a token, and that of each row."""
    _, rows = evaluation.evaluate(
        _step(language.config),
        {"model": params, "aux": {}},
        {},
        {},
        text_lib.rows(_corpus(config.text, language.tokenizer).held_out),
        batch_size=config.score_batch,
        mesh=mesh_of(params),
    )
    nll = -rows["log_prob"].astype(np.float64) / rows["tokens"]
    return {"nll": float(nll.mean()), "row_nll": nll}


def _student(config: Config, whole: Language, name: str) -> Training:
    small, learn = _cut(whole, config.depth), config.learn
    taught = ARMS[name].share > 0

    @functools.cache
    def source() -> sources.Source:
        rows = text_lib.rows(_corpus(config.text, whole.tokenizer).train)
        size = learn.batch_size
        return sources.array_batches(rows, seed=config.seed, name="text", batch_size=size)

    measured = Evaluation(
        "held_out",
        max(1, learn.steps // config.evaluations),
        lambda params, carry, frozen: _score(config, small, params["model"]),
    )
    objective = _objective(small.model, whole.model, ARMS[name].share)
    return Training(
        step=make_train_step(objective, learn.optimizer()),
        weights=small.weights,
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.text(learn.batch_size, config.text.length),
        batch_size=learn.batch_size,
        steps=learn.steps,
        rules=decoder.rules(small.config),
        seed=config.seed,
        evaluations=(measured,),
        frozen=weights.joined(teacher=whole.weights) if taught else None,
        frozen_rules={"teacher": decoder.rules(whole.config)} if taught else {},
    )


def _objective(student: Model, teacher: Model, share: float) -> Objective:
    if share == 0:
        return supervise(student, {"nll": next_token_nll})
    loss = token_divergence(lambda s, t, y: forward_kl(s, t), share, hard=1 - share)
    return distil(student, teacher, {"kd": loss})


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {name: arm.label for name, arm in ARMS.items()}
    return smollm_report.results(labels, config.learn.steps, config.depth, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
