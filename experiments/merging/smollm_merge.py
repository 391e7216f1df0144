"""Language models that learned disjoint facts, merged: whose facts are remembered.

Papers: task arithmetic (arXiv 2212.04089), TIES (arXiv 2306.01708), DARE (arXiv 2311.03099), model
stock (arXiv 2403.19522). SmolLM2-135M is fine-tuned several times, each time on questions about
other fictitious authors of TOFU (arXiv 2401.06121), and the models are merged. A model's knowledge
of a group of authors is the probability of a token of its answers (geometric mean over an answer),
a mean over questions; one group is held out from all.

Claim: the mean of the models knows all groups, each less than its own model; task vectors added in
full remember more.

Measured at `laptop` (two CPU cores, 2026-11): the mean keeps half (0.53 of 0.99). The full sum
keeps less, not more (0.24): it overshoots, task vectors at a scale of 0.4 keep 0.57.

    python -m experiments.merging.smollm_merge smoke     # generated authors, a small LM: 10 s
    python -m experiments.merging.smollm_merge laptop    # SmolLM2-135M, real TOFU: 40 minutes
    python -m experiments.merging.smollm_merge laptop --model FOLDER --authors.each 2

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --authors.folder) and the model
(python -m kd_jax.formats.fetch smollm2).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

from experiments.merging.lm import authors as authors_lib
from experiments.merging.lm import authors_report
from experiments.merging.lm.authors import Authors
from experiments.unlearning.common import lm, qa
from experiments.unlearning.common.learning import Learning
from kd_jax.data import shapes, sources
from kd_jax.launch import run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.language import Language
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.average import average, slerp
from kd_jax.merging.dare import dare
from kd_jax.merging.model_stock import model_stock
from kd_jax.merging.sparse import merge_sparse
from kd_jax.merging.ties import merge_agreeing, ties
from kd_jax.models import decoder, sizes
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import PyTree

CLAIMS = authors_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    model: str | None = None
    """Folder or GGUF file of a pretrained model, or "smollm2"; none is a small one, untrained."""
    decoder: tyro.conf.Fixed[tyro.conf.Suppress[decoder.DecoderConfig]]
    """The small model, or what a plan takes for a model that is not there."""
    authors: Authors = Authors()
    adapter: lm.Adapter = lm.Adapter()
    learn: Learning
    """How each model learns its authors."""
    scale: float = 0.4
    """Task arithmetic's scale without validation data, the paper's for T5."""
    density: float = 0.2
    """The part of each task vector that TIES keeps, the paper's without validation data."""
    drop: float = 0.5
    """The probability with which DARE drops an entry."""
    asked: int = 20
    """Questions of each group that are measured."""
    score_batch: int = 16
    """Rows in a scoring batch."""
    seed: int = 0
    """Of the order of rows, the adapters and DARE."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "scale", "density", "asked", "score_batch")
        if self.density > 1:
            raise ValueError(f"density: got {self.density}, takes up to 1")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop: got {self.drop}, takes 0 to less than 1")


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        authors=Authors(groups=2),
        learn=Learning(rate=1e-2, epochs=10, batch_size=8),
        asked=8,
    ),
    "laptop": Config(
        model="smollm2",
        decoder=dataclasses.replace(sizes.SMOLLM2_135M, remat=False),
        authors=Authors(tofu=True, groups=3, each=1, length=72),
        adapter=lm.Adapter(rank=16, alpha=32.0),
        learn=Learning(rate=2e-3, epochs=8, batch_size=4),
        seed=10,
    ),
}


class Merge(NamedTuple):
    """make(base, models, config) -> the merged weights; uses: the settings that it reads."""

    label: str
    make: Callable[[PyTree, list[PyTree], Config], PyTree]
    uses: tuple[str, ...] = ()


def _dare_ties(base: PyTree, models: list[PyTree], config: Config) -> PyTree:
    sparsify = functools.partial(dare, drop=config.drop)
    key = jax.random.key(config.seed)
    return merge_sparse(base, models, sparsify, key=key, combine=merge_agreeing)


MERGES = {
    "average": Merge("average", lambda base, models, c: average(models)),
    "arithmetic": Merge(
        "task arithmetic",
        lambda base, models, c: task_arithmetic(base, models, scale=c.scale),
        ("scale",),
    ),
    "sum": Merge(
        "sum of task vectors", lambda base, models, c: task_arithmetic(base, models, scale=1.0)
    ),
    "ties": Merge(
        "TIES", lambda base, models, c: ties(base, models, density=c.density), ("density",)
    ),
    "dare_ties": Merge("DARE and TIES", _dare_ties, ("drop",)),
    "stock": Merge("model stock", lambda base, models, c: model_stock(base, models)),
    "slerp": Merge(
        "SLERP of the first two", lambda base, models, c: slerp(models[0], models[1], 0.5)
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    """A model a group of authors, and for it and each merge a stage that measures."""
    data = dataclasses.replace(config.authors, folder=None)
    language = lm.open_language(config.model, config.decoder, config.authors.data, config.seed)
    shared = {"model": config.model, "decoder": config.decoder, "authors": identity(data)}
    shared |= {"seed": config.seed}
    learnt = {"adapter": config.adapter, "learn": config.learn}
    measured = shared | {"asked": config.asked}
    experts = tuple(f"model_{name}" for name in config.authors.names)

    def measure(name: str, needs: tuple[str, ...], make: Any, more: Mapping[str, Any]) -> Stage:
        build = functools.partial(_measured, config, language, make)
        return Stage(name, build, needs, measured | dict(more))

    found = [measure("pretrained", (), lambda base, models: base(), {})]
    for i, name in enumerate(experts):
        build = functools.partial(_learning, config, language, i)
        found.append(Stage(name, build, (), shared | learnt | {"group": i}))
        found.append(measure(f"{name}_score", (name,), lambda base, models: models[0], {}))
    for name, merge in MERGES.items():
        used = {field: getattr(config, field) for field in merge.uses}
        make = functools.partial(_merged, config, merge)
        found.append(measure(name, experts, make, used | {"merge": name}))
    return tuple(found)


def _learning(config: Config, language: Language, group: int, found: Any) -> Training:
    """The pretrained model learns the answers about one group."""
    learn, size = config.learn, config.authors.questions
    tune = lm.tuning(config.adapter, language.config, language.weights, config.seed + group)

    @functools.cache
    def source() -> sources.Source:
        chosen = authors_lib.records(config.authors)[config.authors.names[group]]
        rows = qa.answer_rows(language.tokenizer(), chosen, config.authors.length)
        size = learn.batch_size
        return sources.array_batches(rows, seed=config.seed, name="answers", batch_size=size)

    objective = supervise(language.model, {"nll": next_token_nll}, policy=tune.policy)
    return Training(
        step=make_train_step(objective, learn.optimizer(size)),
        weights=tune.weights,
        frozen=tune.frozen,
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.text(learn.batch_size, config.authors.length),
        batch_size=learn.batch_size,
        steps=learn.steps(size),
        rules=tune.rules,
        frozen_rules=tune.frozen_rules,
        seed=config.seed,
        result=tune.result,
    )


def _merged(
    config: Config, merge: Merge, base: Callable[[], PyTree], models: list[PyTree]
) -> PyTree:
    return jax.jit(lambda base, models: merge.make(base, models, config))(base(), models)


def _measured(
    config: Config, language: Language, make: Any, found: Mapping[str, Artefact]
) -> Compute:
    """What make(base, models) knows: base() is the pretrained model, models those of `found`."""

    def measure() -> tuple[None, Mapping[str, Any]]:
        mesh, rules = make_mesh(config.mesh), decoder.rules(language.config)
        models = [materialise(x.weights(), mesh, rules) for x in found.values()]
        weights = make(lambda: materialise(language.weights, mesh, rules), models)
        return None, authors_lib.known(
            config.authors, language, weights, asked=config.asked, rows=config.score_batch
        )

    return Compute(measure)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {"pretrained": "pretrained"}
    labels |= {f"model_{name}_score": f"learned {name}" for name in config.authors.names}
    labels |= {name: merge.label for name, merge in MERGES.items()}
    return authors_report.results(labels, config.authors.names, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
