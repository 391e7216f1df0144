"""MUSE's six criteria on a small scale: what unlearning removes, leaks, costs and sustains.

Paper: Shi, Lee, Huang, Malladi, Zhao, Holtzman, Liu, Zettlemoyer, Smith, Zhang 2024 (arXiv
2407.06460). A small language model of characters learns passages of two plays by heart and is made
to forget those of one by gradient ascent (GA), NPO, either with a loss (GDR) or a KL divergence
(KLR) on what is to be kept, and by the task vector of a model that learnt them even better. All
passages to forget at once, one part of them alone (scalability), and part after part, each from the
model before (sustainability).

Claim: methods that remove what was learnt by heart leak what was forgotten, cost what was to be
kept, and the more so the more is forgotten.

    python -m experiments.unlearning.muse_small smoke     # generated texts, a tiny LM: 20 s
    python -m experiments.unlearning.muse_small laptop    # Romeo and Juliet, three seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --data.folder).

Where this differs from MUSE: there are no questions about the texts, which a model of this size
could not answer. In the place of KnowMem stands cued recall: a cue of 24 characters out of the
middle of a passage, without what stands before it, and 32 characters of what follows. Learning
rates fall to 0 rather than stay. A request starts from the last model of the one before, not the
one chosen for the tables. Passages held out are of the play to forget, between those forgotten.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import tyro

from experiments.unlearning import _muse, _passages
from experiments.unlearning._learning import Learning
from experiments.unlearning._methods import Make, Setting, ga, with_kl, with_retain
from kd_jax.data import pairs, shapes, sources
from kd_jax.launch import run, weights
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.merging.arithmetic import negate
from kd_jax.models import decoder
from kd_jax.objectives.combinators import frozen_weights, on, own_weights
from kd_jax.objectives.references import online
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.steps import make_train_step
from kd_jax.types import Objective

CLAIMS = _muse.CLAIMS


def npo(s: Setting) -> Objective:
    """NPO; the reference is asked as it is needed, for it is another one in every request."""
    reference = online(s.model, s.reference)
    return on("forget", negative_preference(s.model, reference, beta=s.beta, policy=s.policy))


def nll(s: Setting) -> Objective:
    """Learning a text batch by heart."""
    return supervise(s.model, {"nll": next_token_nll}, policy=s.policy)


METHODS: dict[str, Make] = {
    "ga": ga,
    "ga_gdr": with_retain(ga),
    "ga_klr": with_kl(ga),
    "npo": npo,
    "npo_gdr": with_retain(npo),
    "npo_klr": with_kl(npo),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    decoder: tyro.conf.Fixed[tyro.conf.Suppress[decoder.DecoderConfig]]
    """The model."""
    data: _passages.Data = _passages.Data()
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
    seeds: int = 3
    """Repetitions of everything."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta", "evaluations", "score_batch")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")

    @property
    def requests(self) -> range:
        """Numbers of the requests; "all" stands for all of them at once."""
        return range(1, self.data.requests + 1)

    @property
    def model(self) -> decoder.DecoderConfig:
        return dataclasses.replace(self.decoder, vocab=self.data.vocabulary)


def _model(width: int, depth: int) -> decoder.DecoderConfig:
    return decoder.DecoderConfig(
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
        data=_passages.Data(requests=2, forget=8, retain=16, length=112),
        # Batches divide over eight devices.
        finetune=Learning(rate=1e-2, epochs=8, batch_size=8),
        unlearn=Learning(rate=1e-3, epochs=2, batch_size=8),
        reinforce=Learning(rate=1e-3, epochs=2, batch_size=8),
        evaluations=1,
        score_batch=16,
        seeds=2,
    ),
    "laptop": Config(
        decoder=_model(128, 2),
        data=_passages.Data(shakespeare=True),
        finetune=Learning(rate=3e-3, epochs=60, batch_size=16, warmup=0.05),
        unlearn=Learning(rate=3e-4, epochs=10, batch_size=16, warmup=0.0),
        reinforce=Learning(rate=3e-4, epochs=10, batch_size=16, warmup=0.0),
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in range(config.seeds):
        learnt = _learnt_from(config, seed)
        for name in ("target", "retrained"):
            build = functools.partial(_learning, config, seed, name == "retrained")
            found.append(Stage(f"{name}_{seed}", build, (), learnt))
        for method in METHODS:
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


def _unlearnt(config: Config, seed: int, method: str, learnt: Any) -> list[Stage]:
    depends = learnt | {"unlearn": config.unlearn, "beta": config.beta}
    depends |= {"evaluations": config.evaluations}
    return [
        Stage(
            name,
            functools.partial(_forgetting, config, seed, METHODS[method], start, first, last),
            (start,),
            depends,
        )
        for name, start, first, last in _requests(config, seed, method)
    ]


def _negated(config: Config, seed: int, learnt: Any) -> list[Stage]:
    """Of each request: the model that learns it still better, and what its task vector undoes."""
    depends, found = learnt | {"reinforce": config.reinforce}, []
    for name, start, first, last in _requests(config, seed, "task_vector"):
        better = name.replace("task_vector", "reinforced")
        build = functools.partial(_reinforcing, config, seed, start, first, last)
        found.append(Stage(better, build, (start,), depends))
        build = functools.partial(_negating, config, start, better, last)
        found.append(Stage(name, build, (start, better), depends))
    return found


def _learnt_from(config: Config, seed: int) -> dict[str, Any]:
    data = dataclasses.replace(config.data, folder=None)  # where the files lie changes nothing
    return {"data": data, "learning": config.finetune, "decoder": config.decoder, "seed": seed}


def _learning(config: Config, seed: int, retained_only: bool, _: Any) -> Training:
    model = decoder.decoder(config.model)
    start = weights.from_init(model.init, jax.random.key(seed))
    count = config.data.retain + (0 if retained_only else config.data.total)

    def rows() -> Any:
        found = _passages.load(config.data)
        return _passages.rows([*([] if retained_only else found.forget), *found.retain])

    return _by_heart(config, seed, start, config.finetune, count, rows, tuple(config.requests))


def _reinforcing(
    config: Config, seed: int, start: str, first: int, last: int, found: Any
) -> Training:
    count = (last - first + 1) * config.data.forget

    def rows() -> Any:
        return _passages.rows(_asked(config, first, last))

    return _by_heart(config, seed, found[start].weights(), config.reinforce, count, rows, (last,))


def _asked(config: Config, first: int, last: int) -> list[str]:
    """The passages of some requests."""
    per = config.data.forget
    return _passages.load(config.data).forget[(first - 1) * per : last * per]


def _by_heart(
    config: Config,
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


def _forgetting(
    config: Config, seed: int, make: Make, start: str, first: int, last: int, found: Any
) -> Training:
    learning = config.unlearn

    @functools.cache
    def source() -> sources.Source:
        parts = {
            "forget": {"forget": _passages.rows(_asked(config, first, last))},
            "retain": {"retain": _passages.rows(_passages.load(config.data).retain)},
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
    config: Config,
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
        evaluations=(_muse.along(config, requests, max(1, steps // evaluations)),),
    )


def _negating(config: Config, start: str, better: str, last: int, found: Any) -> Compute:
    rules = decoder.rules(config.model)

    def run_it() -> tuple[Any, Mapping[str, Any]]:
        mesh = make_mesh(config.mesh)
        base, reinforced = (materialise(found[n].weights(), mesh, rules) for n in (start, better))
        unlearnt = negate(base, reinforced)
        return unlearnt, _muse.measure(config, unlearnt, mesh, (last,))

    begin = found[start].weights()
    plan = functools.partial(_muse.planned, config, begin)
    return Compute(run_it, begin.abstract, plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Any):
    return _muse.results(config, tuple(METHODS), artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
