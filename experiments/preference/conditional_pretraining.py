"""Learning from scored text: what keeps a model from writing what it should not, and its price.

Paper: Korbak et al. 2023, pretraining language models with human preferences (arXiv 2302.08582).
Character language models learn a text of which some lines begin with a curse; a line's score says
so. They learn all of it (MLE), the lines without a curse (filtering), all lines behind a tag that
tells the score (conditional training), or with losses that read the scores: unlikelihood,
reward-weighted (RWR) and advantage-weighted regression (AWR). All start from the same weights and
take as many steps.

Measured are the share of bad lines among those that a model writes, and its NLL on held-out lines
without curses. The conditional model is given the good tag before each line that it writes or
reads.

Claim: conditional training writes a tenth of the bad lines or fewer, at next to no price.

    python -m experiments.preference.conditional_pretraining smoke     # generated text: 10 s
    python -m experiments.preference.conditional_pretraining laptop    # tiny Shakespeare, 5 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --folder).

Measured at `laptop` (two CPU cores, 2026-11): of 21 % bad lines conditional training leaves 0.2,
unlikelihood 0.2 and filtering none, RWR and AWR 8 to 10. Unlikelihood costs 0.05 nats more than
conditional training; what conditional training and filtering cost over MLE, 0.01 and 0.02 nats, is
within the spread of seeds. A curse in the place of any word, as against the first, was not learnt
to be told by the tag in 800 steps of a larger model.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distillation.common import text as text_lib
from experiments.distillation.common.learning import Learning
from experiments.preference.parts import conditional_report, planted
from kd_jax.data import shapes, sources
from kd_jax.launch import evaluation, generation, run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import (
    Settings,
    check_distinct,
    check_positive,
    identity,
    not_identity,
)
from kd_jax.launch.stages import Evaluation, Program, Stage, Training, mesh_of
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.feedback import advantage_weighted, token_rwr, token_unlikelihood
from kd_jax.objectives.supervise import TermOf, supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Objective

CLAIMS = conditional_report.CLAIMS
NEWLINE = text_lib.CHARACTERS.index("\n")
LONGEST = 64  # characters of a line that is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    shakespeare: bool = False
    """Tiny Shakespeare instead of generated sentences."""
    folder: str | None = not_identity(None)
    """Where its file lies (by default the environment's KD_JAX_DATA)."""
    methods: tuple[str, ...] = tuple(conditional_report.LABELS)
    """Ways to learn that are compared."""
    bad: float = 0.2
    """The share of lines that get a curse."""
    drop: float = 0.01
    """The share of lines that stay without a tag (conditional)."""
    alpha: float = 1.0
    """Weight of bad lines (unlikelihood)."""
    beta: float = 1.0
    """Temperature of weights (RWR, AWR); scores are 0 and 1."""
    value: float = 0.5
    """Weight of the value head's error, 1 - alpha of the paper (AWR)."""
    model: DecoderConfig
    learn: Learning
    length: int = 64
    """Characters, tags included, that a row has to predict."""
    held_out: int = 1000
    """Lines to measure on, at most."""
    samples: int = 1000
    """Lines that a model writes."""
    score_batch: int = 250
    """Rows measured, and lines written, at once."""
    seeds: int = 3
    """Models of each kind; seed s fixes curses, tags, initial weights and the order of rows."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")
        check_positive(self, "beta", "length", "held_out", "samples", "score_batch", "seeds")
        unknown = [name for name in self.methods if name not in conditional_report.LABELS]
        if unknown:
            known = ", ".join(conditional_report.LABELS)
            raise ValueError(f"methods: got {', '.join(unknown)}, takes {known}")
        for name in ("bad", "drop", "value"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes a number in [0, 1]")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def source(self) -> planted.Source:
        return planted.Source(self.shakespeare, self.folder)


SMALL = DecoderConfig(
    vocab=planted.VOCAB, width=32, depth=1, heads=2, kv_heads=2, head_dim=16, mlp=64,
    tied=True, scan=False, remat=False,
)  # fmt: skip
PRESETS = {
    "smoke": Config(
        methods=("conditional", "awr"),
        model=SMALL,
        learn=Learning(rate=1e-2, steps=60),
        length=32,
        held_out=40,
        samples=64,
        score_batch=64,
        seeds=1,
    ),
    "laptop": Config(
        shakespeare=True,
        model=dataclasses.replace(SMALL, width=64, head_dim=32, mlp=128),
        learn=Learning(rate=6e-3, steps=600, batch_size=32),
        seeds=5,
        seed=20,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    shared = {
        name: value
        for name, value in identity(config).items()
        if name not in ("methods", "seeds", "seed", *(x for xs in _OWN.values() for x in xs))
    }
    return tuple(
        Stage(
            f"{name}_{seed}",
            functools.partial(_training, config, name, seed),
            (),
            shared
            | {"method": name, "seed": seed}
            | {field: getattr(config, field) for field in _OWN.get(name, ())},
        )
        for seed in config.repetitions
        for name in config.methods
    )


# Fields that one method alone reads.
_OWN = {
    "conditional": ("drop",),
    "unlikelihood": ("alpha",),
    "rwr": ("beta",),
    "awr": ("beta", "value"),
}


def _objective(config: Config, name: str) -> Objective:
    model = decoder.decoder(config.model)
    if name == "awr":
        return advantage_weighted(model, beta=config.beta, alpha=1 - config.value)
    terms: Mapping[str, Callable[[], TermOf]] = {
        "unlikelihood": lambda: token_unlikelihood(threshold=planted.THRESHOLD, alpha=config.alpha),
        "rwr": lambda: token_rwr(beta=config.beta),
    }
    return supervise(model, {"term": terms[name]() if name in terms else next_token_nll})


def _text(config: Config, name: str, seed: int) -> planted.Scored:
    """What a model learns."""
    text = planted.cursed(planted.lines(config.source)[0], config.bad, seed)
    if name == "filtering":
        return planted.filtered(text)
    return planted.tagged(text, config.drop, seed) if name == "conditional" else text


def _training(config: Config, name: str, seed: int, found: Mapping[str, Any]) -> Training:
    @functools.cache
    def source() -> sources.Source:
        train = planted.rows(_text(config, name, seed), config.length)
        return sources.array_batches(
            train, seed=seed, name="lines", batch_size=config.learn.batch_size
        )

    rows = (config.learn.batch_size, config.length)
    return Training(
        step=make_train_step(_objective(config, name), config.learn.optimizer()),
        weights=weights.from_init(decoder.decoder(config.model).init, jax.random.key(seed)),
        batches=lambda step, own: source()(step, own),
        batch=shapes.text(*rows) | {"scores": jax.ShapeDtypeStruct(rows, np.float32)},
        batch_size=config.learn.batch_size,
        steps=config.learn.steps,
        rules=decoder.rules(config.model),
        seed=seed,
        evaluations=(_written(config, name, seed),),
    )


@functools.cache  # one step for all models, so that they share compilations
def _step(model: DecoderConfig) -> Any:
    return make_eval_step(supervise(decoder.decoder(model), {"nll": next_token_nll}))


def _written(config: Config, name: str, seed: int) -> Evaluation:
    """{"nll", "bad"}: nats a character on good lines, and bad lines in percent of those written."""
    prompt = [NEWLINE, planted.TAGS.aligned] if name == "conditional" else [NEWLINE]
    sampling = {
        "max_new": LONGEST,
        "stop": (NEWLINE,),
        "banned": tuple(planted.TAGS),
        "temperature": 1.0,
        "batch_size": config.score_batch,
    }

    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, float]:
        model, mesh = params["model"], mesh_of(params)
        good = planted.cursed(planted.lines(config.source)[1][: config.held_out], 0.0, 0)
        if name == "conditional":
            good = planted.tagged(good, 0.0, 0)
        values, _ = evaluation.evaluate(
            _step(config.model),
            {"model": model, "aux": {}},
            {},
            {},
            planted.measured(good, config.length),
            batch_size=config.score_batch,
            mesh=mesh,
        )
        lines = generation.generate(
            config.model, model, [prompt] * config.samples, seed=seed, mesh=mesh, **sampling
        )
        said = ["".join(text_lib.CHARACTERS[token] for token in line) for line in lines]
        bad = 100 * np.mean([planted.is_bad(line) for line in said])
        return {"nll": values["nll"], "bad": float(bad)}

    def plan(params: Any, carry: Any, frozen: Any) -> Mapping[str, Program]:
        model, mesh = params["model"], mesh_of(params)
        batch = shapes.text(config.score_batch, config.length)
        alone = {"model": model, "aux": {}}
        return {
            "nll": evaluation.program(_step(config.model), alone, {}, {}, batch, mesh=mesh),
            "lines": generation.program(
                config.model, model, length=len(prompt), mesh=mesh, **sampling
            ),
        }

    return Evaluation("written", config.learn.steps, measure, plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return conditional_report.results(config.methods, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
