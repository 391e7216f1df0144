"""Self-play finds the Nash policy of an intransitive preference; best responses run in circles.

Paper: INPO, Zhang et al. 2024 (arXiv 2407.00617). Actions beat one another as rock, paper and
scissors do, with a random bias, and a player is held to a reference by a KL of weight tau. Played
in rounds against the last policy: exact mirror descent; INPO, which is gradient descent on logits
by its loss on pairs that the policy drew and the preference labelled; the exact best response; and
iterative DPO on such pairs, against the first reference or against the last iterate.

A small language model plays the same games by rounds of self-play: it writes completions, which
are the actions, a game prefers one of two, and it learns the pairs by INPO or DPO.

Measured is the duality gap of the regularised game, exactly: what the best opponents would win.

Claim: INPO's gap falls to next to nothing, those of best responses and of DPO do not.

    python -m experiments.preference.inpo_nash smoke     # small games: 20 s
    python -m experiments.preference.inpo_nash laptop    # 20 games of each size: 4 minutes

It needs nothing.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.distillation.common.learning import Learning
from experiments.preference.parts import nash_games, nash_report, nash_rounds
from experiments.preference.parts.nash_games import METHODS
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_distinct, check_positive
from kd_jax.launch.stages import Compute, Stage

CLAIMS = nash_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    actions: tuple[int, ...] = (3, 5, 10)
    """Actions of the games, a stage for each number."""
    games: int = 20
    """Games of each number of actions."""
    rounds: int = 60
    """Rounds of play."""
    pairs: int = 2048
    """Pairs that are drawn and labelled in a round."""
    steps: int = 200
    """Steps of gradient descent in a round."""
    eta: float = 0.3
    """Of a step of mirror descent and of INPO, whose size is 1 / eta; at least tau."""
    tau: float = 0.1
    """Weight of the KL to the reference; DPO's beta is four times that."""
    written: nash_rounds.Rounds = nash_rounds.Rounds()
    """A language model's rounds."""
    seed: int = 0
    """The first game's; the others follow."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "games", "rounds", "pairs", "steps", "eta", "tau")
        check_distinct(self, "actions")
        if min(self.actions) < 3:
            raise ValueError(f"actions: got {min(self.actions)}, takes numbers from 3")
        if self.rounds < 4:
            raise ValueError(f"rounds: got {self.rounds}, takes at least 4")
        if self.tau > self.eta:
            raise ValueError(f"tau: got {self.tau}, takes numbers up to eta, {self.eta}")

    @property
    def play(self) -> nash_games.Play:
        return nash_games.Play(self.rounds, self.pairs, self.steps, self.eta, self.tau)

    @property
    def plays(self) -> list[nash_rounds.Play]:
        seeds = range(self.seed, self.seed + self.written.seeds)
        return [nash_rounds.Play(seed, self.eta, self.tau) for seed in seeds]


PRESETS = {
    "smoke": Config(
        actions=(3,),
        games=2,
        rounds=8,
        pairs=64,
        steps=20,
        written=nash_rounds.Rounds(
            rounds=1,
            copies=32,
            begin=Learning(rate=1e-2, steps=5),
            learn=Learning(rate=3e-3, steps=5),
            seeds=1,
        ),
    ),
    "laptop": Config(seed=10),
}


def stages(config: Config) -> tuple[Stage, ...]:
    shared = {"games": config.games, "seed": config.seed, "play": list(config.play)}
    tables = tuple(
        Stage(f"games_{n}", lambda _, n=n: Compute(lambda: _played(config, n)), (), shared)
        for n in config.actions
    )
    rounds = (nash_rounds.stages(config.written, play, config.mesh) for play in config.plays)
    return (*tables, *itertools.chain.from_iterable(rounds))


def _played(config: Config, actions: int) -> tuple[None, Mapping[str, Any]]:
    """Rows "<method>/gap", "/kl", "/likeliest" [games, rounds + 1], "/policy" of the first game."""
    seeds, found = config.seed + jnp.arange(config.games), {}
    nash = nash_games.nash(config.play, actions)(seeds)[:, None]
    for name, (_, update) in METHODS.items():
        gap, policies = nash_games.played(update, config.play, actions)(seeds)
        found |= {
            f"{name}/gap": gap,
            f"{name}/kl": jnp.sum(nash * jnp.log(nash / policies), -1),
            f"{name}/likeliest": policies.max(-1),
            f"{name}/policy": policies[0],
        }
    return None, {name: np.asarray(x) for name, x in found.items()}


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {name: label for name, (label, _) in METHODS.items()}
    found = {n: artefacts[f"games_{n}"].rows for n in config.actions}
    written = {
        label: np.stack(
            [nash_rounds.gaps(config.written, p, artefacts, name) for p in config.plays]
        )
        for name, label in nash_rounds.METHODS.items()
    }
    return nash_report.results(labels, found, written, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
