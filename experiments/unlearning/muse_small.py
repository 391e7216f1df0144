"""MUSE's six criteria on a small scale: what unlearning removes, leaks, costs and sustains.

Paper: Shi, Lee, Huang, Malladi, Zhao, Holtzman, Liu, Zettlemoyer, Smith, Zhang 2024 (arXiv
2407.06460). A small language model learns passages of two plays by heart and is made to forget
those of one by gradient ascent (GA) and NPO, alone or with a loss (GDR) or a KL divergence (KLR) on
what is to be kept, and by the task vector of a model that learnt them even better. It forgets all
passages at once, one part of them alone (scalability), and part after part, each from the model
before (sustainability).

Claim: methods that remove what was learnt by heart leak what was forgotten, cost what was to be
kept, and the more so the more is forgotten. At `laptop` they do, and more so along a stream of
requests; of more that is forgotten at once three seeds do not decide it.

    python -m experiments.unlearning.muse_small smoke     # generated texts: 20 s
    python -m experiments.unlearning.muse_small laptop    # Romeo and Juliet: 14 minutes

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --data.folder).

Where this differs from MUSE: there are no questions about the texts, which a model of this size
could not answer. In the place of KnowMem stands token recall, the share of tokens found likeliest
after the true ones before them; on what is to be kept it is the utility. A passage has 97 tokens,
and about 80 characters of its second half are compared. Passages held out are of the play to
forget, between those forgotten. Rates fall to 0 rather than stay, and all models are those of the
last epoch: MUSE stops at the first in which the utility is below the retrained model's, which here
is the first of all, since target and retrained model know what is to be kept equally well.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import tyro

from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import Make, Setting, ga, with_kl, with_retain
from experiments.unlearning.muse import muse_report, muse_stages, plays
from kd_jax.launch import run
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.stages import Stage
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.combinators import on
from kd_jax.objectives.references import online
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.types import Objective

CLAIMS = muse_report.CLAIMS


def npo(s: Setting) -> Objective:
    """NPO; the reference is asked as it is needed, for it is another one in every request."""
    reference = online(s.model, s.reference)
    return on("forget", negative_preference(s.model, reference, beta=s.beta, policy=s.policy))


Name = Literal["ga", "ga_gdr", "ga_klr", "npo", "npo_gdr", "npo_klr"]

METHODS: dict[Name, Make] = {
    "ga": ga,
    "ga_gdr": with_retain(ga),
    "ga_klr": with_kl(ga),
    "npo": npo,
    "npo_gdr": with_retain(npo),
    "npo_klr": with_kl(npo),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    decoder: tyro.conf.Fixed[tyro.conf.Suppress[DecoderConfig]]
    """The model."""
    data: plays.Data = plays.Data()
    finetune: Learning
    """Learning the passages, all of them and (retrained) those to keep."""
    unlearn: Learning
    """Forgetting; an epoch is a pass over the passages of a request."""
    reinforce: Learning
    """Learning the passages to forget still better, for the task vector."""
    beta: float = 0.1
    """NPO's inverse temperature; towards 0 it becomes gradient ascent."""
    evaluations: int = 5
    """Measurements along each unlearning, after the one at its start."""
    score_batch: int = 64
    """Rows in a scoring batch."""
    methods: tuple[Name, ...] = tuple(METHODS)
    """What unlearns, besides the task vector."""
    seeds: int = 3
    """Repetitions of everything."""
    seed: int = 0
    """Of the first repetition."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta", "evaluations", "score_batch", "seeds")

    @property
    def repetitions(self) -> range:
        """The seed of each repetition."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def requests(self) -> range:
        """Numbers of the requests; "all" stands for all of them at once."""
        return range(1, self.data.requests + 1)

    @property
    def model(self) -> DecoderConfig:
        return dataclasses.replace(self.decoder, vocab=self.data.vocabulary)


def _model(width: int, depth: int) -> DecoderConfig:
    return DecoderConfig(
        vocab=1,  # the data's
        width=width,
        depth=depth,
        heads=4,
        kv_heads=4,
        head_dim=width // 4,
        mlp=3 * width,
        tied=True,
        scan=False,
        remat=False,
    )


PRESETS = {
    "smoke": Config(
        decoder=_model(32, 1),
        data=plays.Data(requests=2, forget=8, retain=16, length=48, vocabulary=256),
        # Batches divide over eight devices.
        finetune=Learning(rate=1e-2, epochs=16, batch_size=8),
        # One step each, so that all requests share a compilation.
        unlearn=Learning(rate=3e-3, epochs=0.5, batch_size=8),
        reinforce=Learning(rate=3e-3, epochs=0.5, batch_size=8),
        evaluations=1,
        score_batch=16,
        methods=("npo_gdr",),
        seeds=1,
    ),
    "laptop": Config(
        decoder=_model(128, 2),
        data=plays.Data(shakespeare=True),
        finetune=Learning(rate=5e-3, epochs=60, batch_size=16, warmup=0.05),
        unlearn=Learning(rate=1e-3, epochs=10, batch_size=16, warmup=0.0),
        reinforce=Learning(rate=1e-3, epochs=10, batch_size=16, warmup=0.0),
        seed=10,  # sizes and rates were chosen on seed 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        learnt = _learnt_from(config, seed)
        for name in ("target", "retrained"):
            build = functools.partial(muse_stages.learning, config, seed, name == "retrained")
            found.append(Stage(f"{name}_{seed}", build, (), learnt))
        for method in config.methods:
            found += _unlearnt(config, seed, method, learnt)
        found += _negated(config, seed, learnt)
    return tuple(found)


def _requests(config: Config, seed: int, name: str) -> list[tuple[str, str, int, int]]:
    """(stage, the stage it starts from, first request, last request) of each unlearning."""
    found = [(f"{name}_all_{seed}", f"target_{seed}", 1, config.data.requests)]
    before = f"target_{seed}"
    for number in config.requests:
        found.append((f"{name}_{number}_{seed}", before, number, number))
        before = f"{name}_{number}_{seed}"
    return found


def _unlearnt(config: Config, seed: int, method: Name, learnt: Any) -> list[Stage]:
    depends = learnt | {"unlearn": config.unlearn, "beta": config.beta}
    depends |= {"evaluations": config.evaluations}
    make = functools.partial(muse_stages.forgetting, config, seed, METHODS[method])
    return [
        Stage(name, functools.partial(make, start, first, last), (start,), depends)
        for name, start, first, last in _requests(config, seed, method)
    ]


def _negated(config: Config, seed: int, learnt: Any) -> list[Stage]:
    """Of each request: the model that learns it still better, and what its task vector undoes."""
    depends, found = learnt | {"reinforce": config.reinforce}, []
    for name, start, first, last in _requests(config, seed, "task_vector"):
        better = name.replace("task_vector", "reinforced")
        build = functools.partial(muse_stages.reinforcing, config, seed, start, first, last)
        found.append(Stage(better, build, (start,), depends))
        build = functools.partial(muse_stages.negating, config, start, better, last)
        found.append(Stage(name, build, (start, better), depends))
    return found


def _learnt_from(config: Config, seed: int) -> dict[str, Any]:
    data = dataclasses.replace(config.data, folder=None)  # where the files lie changes nothing
    return {"data": data, "learning": config.finetune, "decoder": config.decoder, "seed": seed}


def report(config: Config, artefacts: Mapping[str, Any], folder: Any):
    return muse_report.results(config, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
