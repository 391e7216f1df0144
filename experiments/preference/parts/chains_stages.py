"""The stages of a seed: a model that takes shortcuts, what it writes, and four ways to go on."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from experiments.distillation.common.learning import Learning
from experiments.preference.parts import chains, small_lm
from kd_jax.data.arrays import Arrays
from kd_jax.data.collate import Example, collate_qa
from kd_jax.data.pairs import Pair
from kd_jax.data.preferences import Choices, first_of_equals, verified
from kd_jax.data.steps import Rollout, step_pair
from kd_jax.launch import generation, self_play
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import identity
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Compute, Evaluation, Stage, Training, materialise, mesh_of
from kd_jax.losses.preference.margin import dpo
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import precomputed
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.trees import flatten
from kd_jax.types import Objective

Found = Mapping[str, Artefact]

TRAIN, FAMILIAR, BROKEN, LAZY = range(4)  # what is drawn apart of a seed


class Reads(Protocol):
    """What of a config is read here."""

    @property
    def mesh(self) -> MeshConfig: ...
    @property
    def task(self) -> chains.Task: ...
    @property
    def model(self) -> DecoderConfig: ...
    @property
    def learn(self) -> Learning: ...
    @property
    def imitate(self) -> Learning: ...
    @property
    def prefer(self) -> Learning: ...
    @property
    def problems(self) -> int: ...
    @property
    def tested(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def rollouts(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def beta(self) -> float: ...


def of_seed(config: Reads, seed: int) -> Sequence[Stage]:
    base, written, pits = (f"{name}_{seed}" for name in ("base", "written", "pits"))
    begun: dict[str, Any] = {
        "task": list(config.task),
        "model": identity(config.model),
        "learn": identity(config.learn),
        "problems": [config.problems, config.tested, config.batch],
        "seed": seed,
    }
    imitate = begun | {"imitate": identity(config.imitate)}
    preferred = begun | {"prefer": identity(config.prefer), "beta": config.beta}
    asked = {"samples": config.samples}

    def imitated(rows: Callable[[Found], Arrays]) -> Callable[[Found], Training]:
        return lambda found: _training(
            config, seed, config.imitate, _imitation(config), lambda: rows(found), found[base]
        )

    def prefers(pairs: str) -> Callable[[Found], Training]:
        return lambda found: _training(
            config, seed, config.prefer, _preference(config),
            lambda: self_play.pairs_of(found[pairs]), found[base], ("iterate",),
        )  # fmt: skip

    return (
        Stage(base, lambda _: _base(config, seed), (), begun),
        _written(config, seed, written, base, begun | asked),
        Stage(
            pits,
            lambda found: Compute(lambda: _pits(config, seed, found[base], found[written])),
            (base, written),
            {"rollouts": config.rollouts},
        ),
        Stage(f"sft_{seed}", imitated(lambda _: _demonstrated(config, seed)), (base,), imitate),
        Stage(
            f"rft_{seed}",
            imitated(lambda found: _with_own(config, seed, found[written])),
            (base, written),
            imitate,
        ),
        Stage(f"dpo_{seed}", prefers(written), (base, written), preferred),
        Stage(f"per_step_{seed}", prefers(pits), (base, pits), preferred),
    )


@functools.lru_cache(maxsize=8)
def problems(task: chains.Task, count: int, seed: int, kind: int) -> chains.Problems:
    return chains.drawn(task, count, (seed, kind), runs=kind == BROKEN)


def _learnt(config: Reads, seed: int) -> chains.Problems:
    return problems(config.task, config.problems, seed, TRAIN)


def _imitation(config: Reads) -> Objective:
    return supervise(decoder.decoder(config.model), {"nll": next_token_nll})


def _preference(config: Reads) -> Objective:
    loss = functools.partial(dpo, beta=config.beta)
    reference = precomputed("iterate_log_probs")
    return prefer(decoder.decoder(config.model), {"dpo": loss}, reference)


def _base(config: Reads, seed: int) -> Training:
    rows = functools.partial(_demonstrated, config, seed)
    return _training(config, seed, config.learn, _imitation(config), rows)


def _training(
    config: Reads,
    seed: int,
    learning: Learning,
    objective: Objective,
    rows: Callable[[], Arrays],
    start: Artefact | None = None,
    columns: Sequence[str] | None = None,
) -> Training:
    return small_lm.training(
        config.model,
        objective,
        learning,
        rows,
        name="chains",
        length=_length(config),
        seed=seed,
        measured=_measured(config, seed, learning.steps),
        start=None if start is None else start.weights(),
        columns=columns,
    )


def _measured(config: Reads, seed: int, every: int) -> Evaluation:
    """Greedy answers to fresh problems of both kinds: shares right, and of shortcuts taken."""

    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, float]:
        found = {}
        for name, kind in (("familiar", FAMILIAR), ("broken", BROKEN)):
            asked = problems(config.task, config.tested, seed, kind)
            texts = generation.generate(
                config.model, params["model"], asked.prompts.tolist(),
                batch_size=config.batch, mesh=mesh_of(params["model"]), **_writing(config),
            )  # fmt: skip
            right = [chains.right(x, text) for x, text in zip(asked.numbers, texts, strict=True)]
            found[f"{name}_right"] = float(np.mean(right))
            found[f"{name}_shortcuts"] = chains.shortcuts(asked, [x.tolist() for x in texts])
        return found

    return Evaluation("chains", every, measure)


def _written(config: Reads, seed: int, name: str, base: str, depends: Any) -> Stage:
    """The model's own responses, and pairs of a right and a wrong one, one pair a problem."""

    def label(prompts: self_play.Prompts, texts: self_play.Texts) -> Choices:
        return verified(_right(_learnt(config, seed), texts), most=1, seed=seed)

    writing = _writing(config)
    return self_play.stage(
        name,
        config=config.model,
        iterate=lambda found: found[base].weights(),
        prompts=lambda: _learnt(config, seed).prompts.tolist(),
        label=label,
        samples=config.samples,
        prompt_length=config.task.steps + 2,
        length=_length(config),
        eos_id=config.task.end,
        batch_size=config.batch,
        mesh=config.mesh,
        seed=2 * seed,
        max_new=writing["max_new"],
        temperature=1.0,
        needs=(base,),
        depends=depends,
    )


def _pits(
    config: Reads, seed: int, base: Artefact, written: Artefact
) -> tuple[None, Mapping[str, Any]]:
    """Pairs at the first pits of wrong responses, the first of each problem; and where they are."""
    mesh, asked, steps = make_mesh(config.mesh), _learnt(config, seed), config.task.steps
    own = materialise(base.weights(), mesh, decoder.rules(config.model))
    texts = _texts(written)
    wrong = [_first_wrong(x, mine) for x, mine in zip(asked.numbers, texts, strict=True)]
    tried = [(n, text) for n, text in enumerate(wrong) if text is not None]
    prefixes = [asked.prompts[n].tolist() + text[:i] for n, text in tried for i in range(steps)]
    found = self_play.completions(
        config.model, own, prefixes, samples=config.rollouts, length=2 * steps + 2,
        batch_size=config.batch, mesh=mesh, seed=2 * seed + 1, temperature=1.0, **_writing(config),
    )  # fmt: skip
    pairs: list[Pair] = []
    places: list[int] = []
    for j, (n, text) in enumerate(tried):
        rollouts = [
            [_rollout(asked.numbers[n], text[:i], rest.tolist()) for rest in found[j * steps + i]]
            for i in range(steps)
        ]
        least = config.rollouts**-0.5
        made = step_pair(asked.prompts[n].tolist(), [[x] for x in text], rollouts, least=least)
        if made is not None:
            end = [config.task.end]
            pairs.append(Pair(made.prompt, [*made.chosen, *end], [*made.rejected, *end]))
            places.append(len(made.prompt) - steps - 2)
    if not pairs:
        raise ValueError(f"none of {len(tried)} wrong responses has a pit")
    rows = self_play.with_log_probs(
        config.model, {"iterate": lambda: own}, pairs,
        length=_length(config), batch_size=config.batch, mesh=mesh,
    )  # fmt: skip
    counts = {"wrong": len(tried), "pairs": len(pairs)}
    return None, {**flatten(rows), "places": np.array(places), **counts}


def _rollout(numbers: np.ndarray, before: list[int], rest: list[int]) -> Rollout:
    """An end at once is a step of its own, and wrong."""
    return Rollout([[x] for x in rest] or [[]], chains.right(numbers, [*before, *rest]))


def _first_wrong(numbers: np.ndarray, texts: Sequence[list[int]]) -> list[int] | None:
    """The first wrong response that has all its steps."""
    whole = (text for text in texts if len(text) == len(numbers))
    return next((text for text in whole if not chains.right(numbers, text)), None)


def _demonstrated(config: Reads, seed: int) -> Arrays:
    asked = _learnt(config, seed)
    return _rows(config, asked.prompts, chains.demonstrations(config.task, asked, (seed, LAZY)))


def _with_own(config: Reads, seed: int, written: Artefact) -> Arrays:
    """The demonstrations and every other right response of the model's own."""
    asked = _learnt(config, seed)
    shown = chains.demonstrations(config.task, asked, (seed, LAZY)).tolist()
    texts = [[first, *own] for first, own in zip(shown, _texts(written), strict=True)]
    kept = [
        (n, text)
        for n, own in enumerate(texts)
        for text, fresh in zip(own, first_of_equals([tuple(x) for x in own]), strict=True)
        if fresh and chains.right(asked.numbers[n], text)
    ]
    return _rows(config, asked.prompts[[n for n, _ in kept]], [text for _, text in kept])


def _rows(config: Reads, prompts: np.ndarray, answers: Any) -> Arrays:
    examples = [Example(list(x), list(y)) for x, y in zip(prompts, answers, strict=True)]
    return collate_qa(examples, length=_length(config), eos_id=config.task.end)


def _right(asked: chains.Problems, texts: self_play.Texts) -> np.ndarray:
    both = zip(asked.numbers, texts, strict=True)
    return np.array([[chains.right(numbers, text) for text in own] for numbers, own in both])


def _texts(written: Artefact) -> list[list[list[int]]]:
    """[N][K] responses of a stage of self-play."""
    tokens, lengths = written.rows["tokens"], written.rows["lengths"]
    return [
        [text[:n].tolist() for text, n in zip(own, counts, strict=True)]
        for own, counts in zip(tokens, lengths, strict=True)
    ]


def _length(config: Reads) -> int:
    """Of a row: the prompt, S numbers, and the end, shifted by one."""
    return 2 * config.task.steps + 2


def _writing(config: Reads) -> dict[str, Any]:
    return {"max_new": config.task.steps + 1, "stop": (config.task.end,)}
