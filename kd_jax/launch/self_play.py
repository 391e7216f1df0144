"""Rounds of self-play: a model writes completions, something prefers some, the model learns pairs.

A round is two stages in a `requests.stream`: the `stage` here samples K completions of each prompt
from the current iterate and keeps pairs of them; a Training starts from the iterate, reads the
pairs, and its result is the next iterate:

    def stages(request):
        written = f"{request.result}_pairs"
        return (
            self_play.stage(written, iterate=lambda found: found[request.start].weights(), ...),
            Stage(request.result, train, (request.start, written)),
        )

    requests.stream("sft", ["iterate_1", "iterate_2"], stages)

What is compiled is the same in every round, however many pairs it has: batches are filled up.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from kd_jax.data import shapes
from kd_jax.data.pairs import Pair, collate_pairs
from kd_jax.data.preferences import Choices, best_and_worst
from kd_jax.launch import evaluation, generation
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Compute, Program, Stage, materialise, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.score import sequence_scores
from kd_jax.steps import make_eval_step
from kd_jax.trees import flatten, nest

PyTree = Any
Found = Mapping[str, Artefact]
Prompts = Sequence[Sequence[int]]
Texts = Sequence[Sequence[np.ndarray]]  # [N][K] completions, without their end-of-sequence token
Label = Callable[[Prompts, Texts], Choices]
# (a prompt, its K completions) -> K numbers, more is better.
Reward = Callable[[Sequence[int], Sequence[np.ndarray]], Sequence[float] | np.ndarray]

SIDES = ("chosen", "rejected")


def completions(
    config: DecoderConfig, weights: PyTree, prompts: Prompts, *, samples: int, **settings: Any
) -> list[list[np.ndarray]]:
    """`samples` completions of each prompt, [N][K]; settings: of `generation.generate`."""
    if samples < 1:
        raise ValueError(f"samples: got {samples}, takes at least 1")
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    texts = generation.generate(config, weights, repeated, **settings)
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def rewarded(reward: Reward) -> Label:
    """The best against the worst of each prompt's completions (`preferences.best_and_worst`)."""

    def label(prompts: Prompts, texts: Texts) -> Choices:
        return best_and_worst(
            np.array([reward(x, own) for x, own in zip(prompts, texts, strict=True)])
        )

    return label


def chosen_pairs(
    prompts: Prompts, texts: Texts, choices: Choices, *, eos_id: int | None, max_new: int
) -> list[Pair]:
    """The pairs of texts that are meant; those of two equal texts are left out.

    A text shorter than max_new has ended: it gets its eos_id back. One cut by max_new does not.
    """

    def whole(text: np.ndarray) -> list[int]:
        tokens: list[int] = text.tolist()
        if eos_id is not None and len(tokens) < max_new:
            tokens.append(eos_id)
        return tokens

    pairs = (
        Pair(list(prompts[n]), whole(texts[n][i]), whole(texts[n][j]))
        for n, i, j in zip(*choices, strict=True)
    )
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def log_probs(
    config: DecoderConfig, weights: PyTree, rows: Mapping[str, Any], *, batch_size: int, mesh: Mesh
) -> np.ndarray:
    """log p(weighed targets | inputs) of each row of a text batch, f32 [N]."""
    params = {"model": weights, "aux": {}}
    _, found = evaluation.evaluate(
        _scores(config), params, {}, {}, rows, batch_size=batch_size, mesh=mesh
    )
    return found["log_prob"]


def with_log_probs(
    config: DecoderConfig,
    models: Mapping[str, Callable[[], PyTree]],
    pairs: Sequence[Pair],
    *,
    length: int,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, Any]:
    """{"chosen": rows, "rejected": rows} of P pairs whose answers have their ends.

    models: {name: () -> weights on the mesh}, loaded one after another; each gives the column
    "<name>_log_probs" f32 [P].
    """
    rows = collate_pairs(pairs, length=length, eos_id=None)
    texts = {side: dict(rows[side]) for side in SIDES}  # the same shapes for every model
    for name, load in models.items():
        weights = load()
        for side in SIDES:
            rows[side][f"{name}_log_probs"] = log_probs(
                config, weights, texts[side], batch_size=batch_size, mesh=mesh
            )
    return rows


def stage(
    name: str,
    *,
    config: DecoderConfig,
    iterate: Callable[[Found], Weights],
    references: Mapping[str, Callable[[Found], Weights]] = {},
    prompts: Callable[[], Prompts],
    label: Label,
    samples: int,
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
    """A stage in which the iterate writes `samples` completions of each prompt, and pairs are made.

    The artefact has the pairs with their log-probabilities (`pairs_of`) and all completions: rows
    "tokens" i32 [N, K, max_new] and "lengths" i32 [N, K]; values "prompts" and "pairs", numbers.

    iterate(artefacts): plain weights of what writes; its log-probabilities are the column
        "iterate_log_probs". references: {name: artefacts -> weights} of models of the same config,
        each the column "<name>_log_probs".
    prompts() -> token ids, loaded when the stage runs; prompt_length: what they are padded to.
    label(prompts, texts) -> which make a pair: `rewarded(reward)`, or a verifier or tournament of
        `data.preferences`. Any function of texts; the same in every process.
    length: T of the pairs' rows. seed: another one each round. sampling: as of
        `generation.generate`; temperature 1 is the iterate's own distribution.
    needs, depends: as of a Stage; depends names what label and prompts depend on.
    ValueError where no prompt has a pair.
    """
    stop = () if eos_id is None else (eos_id,)
    settings = {"batch_size": batch_size, "max_new": max_new, "stop": stop, **sampling}

    def compute(found: Found) -> tuple[None, Mapping[str, Any]]:
        on, asked = make_mesh(mesh), prompts()
        own = materialise(iterate(found), on, decoder.rules(config))
        texts = completions(
            config,
            own,
            asked,
            samples=samples,
            length=prompt_length,
            mesh=on,
            seed=seed,
            **settings,
        )
        pairs = chosen_pairs(asked, texts, label(asked, texts), eos_id=eos_id, max_new=max_new)
        if not pairs:
            raise ValueError(f"stage {name}: none of {len(asked)} prompts has a pair")
        others = {
            model: functools.partial(materialise, weights(found), on, decoder.rules(config))
            for model, weights in references.items()
        }
        rows = with_log_probs(
            config, {"iterate": lambda: own} | others, pairs,
            length=length, batch_size=batch_size, mesh=on,
        )  # fmt: skip
        counts = {"prompts": len(asked), "pairs": len(pairs)}
        return None, {**flatten(rows), **_padded(texts, max_new), **counts}

    def plan(found: Found, on: Mesh) -> Mapping[str, Program]:
        own = shapes_on(iterate(found), on, decoder.rules(config))
        program = generation.program(config, own, length=prompt_length, mesh=on, **settings)
        params, text = {"model": own, "aux": {}}, shapes.text(batch_size, length)
        score = evaluation.program(_scores(config), params, {}, {}, text, mesh=on)
        return {"completions": program, "log_probs": score}

    def build(found: Found) -> Compute:
        return Compute(lambda: compute(found), plan=functools.partial(plan, found))

    return Stage(name, build, needs, depends)


def pairs_of(artefact: Artefact) -> dict[str, Any]:
    """{"chosen": rows, "rejected": rows} of a `stage`, for `data.sources.array_batches`.

    Text batches of P rows with a column "<name>_log_probs" f32 [P] for each model.
    """
    rows = {x: row for x, row in artefact.rows.items() if x.split("/")[0] in SIDES}
    if not rows:
        raise ValueError(f"stage {artefact.name} kept no pairs")
    return nest(rows)


def shapes_of(pairs: int, length: int, models: Sequence[str] = ("iterate",)) -> dict[str, Any]:
    """The shapes of a batch of so many of those pairs (`Training.batch`)."""
    columns = [f"{model}_log_probs" for model in models]
    return {side: shapes.text(pairs, length, columns) for side in SIDES}


@functools.cache  # `evaluate` compiles once for each function
def _scores(config: DecoderConfig) -> Any:
    return make_eval_step(sequence_scores(decoder.decoder(config)))


def _padded(texts: Texts, max_new: int) -> dict[str, np.ndarray]:
    lengths = np.array([[len(text) for text in own] for own in texts], np.int32)
    tokens = np.zeros((*lengths.shape, max_new), np.int32)
    for n, own in enumerate(texts):
        for k, text in enumerate(own):
            tokens[n, k, : len(text)] = text
    return {"tokens": tokens, "lengths": lengths}
