"""The same games for a small language model: rounds of self-play on completions it writes.

Prompts are the symbols, completions all texts of two symbols, so that a policy is a table and its
duality gap is exact. Each prompt has a game of its own.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common.learning import Learning
from experiments.preference.parts import nash_games, small_lm
from kd_jax.data.collate import Example, collate_qa
from kd_jax.data.order import fractions
from kd_jax.data.preferences import Choices, tournament
from kd_jax.evaluation import games
from kd_jax.launch import requests, self_play
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import check_positive, identity
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.stages import Evaluation, Stage, Training
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import precomputed
from kd_jax.objectives.self_play import inpo
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Objective

Found = Mapping[str, Artefact]

SYMBOLS, LENGTH = 3, 2  # a row predicts two symbols after its prompt
TEXTS = np.array([[i, j] for i in range(SYMBOLS) for j in range(SYMBOLS)])
METHODS = {"inpo": "INPO, language model", "dpo": "iterative DPO, language model"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    """A language model's rounds of self-play."""

    model: DecoderConfig = DecoderConfig(
        vocab=SYMBOLS, width=32, depth=1, heads=2, kv_heads=2, head_dim=16, mlp=64, remat=False
    )
    """The language model."""
    rounds: int = 8
    """Rounds of writing and learning."""
    copies: int = 1024
    """Pairs of completions of each prompt in a round."""
    begin: Learning = Learning(rate=1e-2, steps=200, batch_size=64)
    """How it learns the texts it starts with."""
    learn: Learning = Learning(rate=3e-3, steps=150, batch_size=256)
    """How it learns the pairs of a round."""
    seeds: int = 3
    """Repetitions."""

    def __post_init__(self):
        check_positive(self, "rounds", "copies", "seeds")


class Play(NamedTuple):
    """seed: of games, start and draws. eta, tau: as of `nash_games.Play`."""

    seed: int
    eta: float
    tau: float

    @property
    def games(self) -> list[nash_games.Game]:
        numbers = SYMBOLS * self.seed + np.arange(SYMBOLS)
        return [nash_games.drawn(jnp.int32(n), len(TEXTS)) for n in numbers]


def stages(config: Rounds, play: Play, mesh: MeshConfig) -> tuple[Stage, ...]:
    """The stages of a seed: a start, and for each method the iterates with their pairs."""
    start = f"start_{play.seed}"
    begun = {x: identity(getattr(config, x)) for x in ("model", "begin")} | {"seed": play.seed}
    found = [Stage(start, lambda _: _begun(config, play), (), begun)]
    for method in METHODS:
        asked = functools.partial(_round, config, play, mesh, method, start)
        found += requests.stream(start, iterates(config, method, play.seed), asked)
    return tuple(found)


def iterates(config: Rounds, method: str, seed: int) -> list[str]:
    return [f"{method}_{i + 1}_{seed}" for i in range(config.rounds)]


def gaps(config: Rounds, play: Play, found: Found, method: str) -> np.ndarray:
    """f64 [rounds + 1]: the duality gap of each iterate, a mean over prompts."""
    own = play.games
    names = [f"start_{play.seed}", *iterates(config, method, play.seed)]
    tables = [_last(found[name].rows) for name in names]
    gap = jax.jit(functools.partial(games.duality_gap, tau=play.tau))
    return np.array(
        [
            np.mean(
                [gap(g.preference, p, r) for g, p, r in zip(own, table, tables[0], strict=True)]
            )
            for table in tables
        ]
    )


def _last(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """The policy at the end of a training, [prompts, completions]."""
    step = max(int(name.split("/")[0]) for name in rows if name.endswith("policy/table"))
    return rows[f"{step}/policy/table"]


def _round(
    config: Rounds,
    play: Play,
    mesh: MeshConfig,
    method: str,
    first: str,
    request: requests.Request,
) -> Sequence[Stage]:
    written = f"{request.result}_pairs"
    seed = 1000 * play.seed + request.number

    def label(prompts: self_play.Prompts, texts: self_play.Texts) -> Choices:
        return _preferred(play, seed, prompts, texts)

    def train(found: Found) -> Training:
        return small_lm.training(
            config.model,
            _objective(config, play, method),
            config.learn,
            lambda: self_play.pairs_of(found[written]),
            name="texts",
            length=LENGTH,
            seed=play.seed,
            measured=_policy(config.model, config.learn.steps),
            start=found[request.start].weights(),
            columns=("iterate", "reference"),
        )

    return (
        self_play.stage(
            written,
            config=config.model,
            iterate=lambda found: found[request.start].weights(),
            references={"reference": lambda found: found[first].weights()},
            prompts=lambda: [[x] for x in range(SYMBOLS) for _ in range(config.copies)],
            label=label,
            samples=2,
            prompt_length=1,
            length=LENGTH,
            eos_id=None,
            batch_size=2048,
            mesh=mesh,
            seed=seed,
            max_new=LENGTH,
            temperature=1.0,
            needs=tuple(dict.fromkeys((request.start, first))),
            depends={"copies": config.copies, "seed": seed},
        ),
        Stage(
            request.result,
            train,
            (request.start, written),
            {"method": method, "play": list(play), "learn": identity(config.learn)},
        ),
    )


def _preferred(
    play: Play, seed: int, prompts: self_play.Prompts, texts: self_play.Texts
) -> Choices:
    """Of two completions the game of their prompt prefers one, by a draw."""
    tables = np.stack([game.preference for game in play.games])
    of = np.array([prompt[0] for prompt in prompts])
    said = np.array(texts) @ np.array([SYMBOLS, 1])  # [N, 2], places in TEXTS
    chance = fractions(seed, "preferred", 0, len(of))

    def preference(n: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (chance[n] < tables[of[n], said[n, i], said[n, j]]).astype(float)

    return tournament(preference, prompts=len(of), samples=2, seed=seed)


def _objective(config: Rounds, play: Play, method: str) -> Objective:
    model = decoder.decoder(config.model)
    reference, iterate = precomputed(), precomputed("iterate_log_probs")
    if method == "inpo":
        return inpo(model, reference, iterate, eta=play.eta, tau=play.tau)
    return prefer(model, {"dpo": functools.partial(dpo, beta=4 * play.tau)}, reference)


def _begun(config: Rounds, play: Play) -> Training:
    """Learns texts drawn with the references of the games."""
    return small_lm.training(
        config.model,
        supervise(decoder.decoder(config.model), {"nll": next_token_nll}),
        config.begin,
        lambda: _texts(play),
        name="texts",
        length=LENGTH,
        seed=play.seed,
        measured=_policy(config.model, config.begin.steps),
    )


def _texts(play: Play, count: int = 2000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(play.seed)
    examples = []
    for prompt, game in enumerate(play.games):
        share = np.asarray(game.reference, np.float64)
        drawn = rng.choice(len(TEXTS), count, p=share / share.sum())
        examples += [Example([prompt], TEXTS[i].tolist()) for i in drawn]
    return collate_qa(examples, length=LENGTH, eos_id=None)


def _policy(config: DecoderConfig, every: int) -> Evaluation:
    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, Any]:
        return {"table": np.asarray(_table(config, params["model"]))}

    return Evaluation("policy", every, measure)


@functools.partial(jax.jit, static_argnums=0)
def _table(config: DecoderConfig, params: Any) -> jax.Array:
    """Probabilities of all completions of each prompt, f32 [prompts, completions]."""
    examples = [Example([x], text.tolist()) for x in range(SYMBOLS) for text in TEXTS]
    rows = jax.tree.map(jnp.asarray, collate_qa(examples, length=LENGTH, eos_id=None))
    head = decoder.decoder(config).apply(params, rows).head
    log_probs = sequence_log_probs(token_log_probs(head, rows["targets"]), rows["weights"])
    return jnp.exp(log_probs).reshape(SYMBOLS, -1)
