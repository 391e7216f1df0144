"""Forty preference losses, one protocol, and a true preference that is known.

Papers: one for each loss, named where it is defined (`kd_jax.losses.preference`); the formulas are
those of Richardson et al. 2024 (arXiv 2412.17696).

A small language model learns from demonstrations and is the reference. Pairs of its completions
are labelled by Bradley and Terry's model of a reward that is known. Each loss then trains the same
model on the same pairs for the same number of steps; its strength (beta, tau, ...) is the one of
four with the highest win rate on tuning seeds. All completions can be written down, so that the
win rate against the reference, the KL to it and the best win rate at that KL are exact.

    python -m experiments.preference.zoo smoke     # three losses, few steps: 10 s
    python -m experiments.preference.zoo laptop    # all of them, 10 seeds: 4 minutes

Claims: every loss beats the reference; DPO takes the chosen's likelihood down and losses with a
likelihood term do not; without a reference the policy drifts further. It needs nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.preference.common import enumerated
from experiments.preference.parts import zoo_claims, zoo_report, zoo_training, zoo_world
from experiments.preference.parts.zoo_methods import METHODS
from experiments.preference.parts.zoo_world import World
from kd_jax.launch import run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_distinct, check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.sharding import shard_tree, with_shardings
from kd_jax.launch.stages import REPLICATED, Compute, Program, Stage, materialise

CLAIMS = zoo_claims.CLAIMS

STRENGTHS = np.geomspace(0.1, 1000.0, 60)  # of the best possible policies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    methods: tuple[str, ...] = tuple(METHODS)
    """Losses to train with; a claim about others is not tested."""
    prompts: int = 4
    """Prompts, each with its own reward."""
    symbols: int = 4
    """Symbols of the alphabet."""
    longest: int = 4
    """Symbols of the longest completion."""
    width: int = 32
    """Width of the language model."""
    demonstrations: int = 400
    """Completions that the reference learns from."""
    pairs: int = 200
    """Pairs to learn preferences from."""
    sft_steps: int = 400
    """Steps that make the reference."""
    sft_rate: float = 1e-2
    """Their learning rate."""
    steps: int = 200
    """Steps of preference optimisation."""
    rate: float = 3e-3
    """Their learning rate."""
    every: int = 4
    """Steps between two measurements."""
    seeds: int = 10
    """Worlds to measure in, and as many others in which the strength of each loss is chosen."""
    seed: int = 10
    """The first world to measure in; strengths are chosen in those from 0 on."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"methods: got {' '.join(unknown)}, takes some of {' '.join(METHODS)}")
        check_positive(self, "prompts", "symbols", "longest", "width", "demonstrations", "pairs")
        check_positive(self, "sft_steps", "sft_rate", "steps", "rate", "every")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")
        if self.seed < self.seeds:
            raise ValueError(
                f"seed: got {self.seed}, takes at least seeds, {self.seeds}: those before choose"
            )
        if self.steps % self.every:
            raise ValueError(f"steps: got {self.steps}, takes a multiple of every, {self.every}")


PRESETS = {
    "smoke": Config(
        methods=("dpo", "cpo", "kto"), prompts=2, symbols=2, longest=3, width=8, demonstrations=40,
        pairs=20, sft_steps=20, steps=10, every=5, seeds=2,
    ),
    "laptop": Config(),
}  # fmt: skip


def stages(config: Config) -> tuple[Stage, ...]:
    """The worlds, with their references, and one stage a loss."""
    worlds = {"sizes": _sizes(config), "seeds": _seeds(config).tolist()}
    trained = {"steps": config.steps, "rate": config.rate, "every": config.every}
    found = [Stage("worlds", lambda _: _worlds(config), (), worlds)]
    for name in config.methods:
        build = functools.partial(_trained, config, name)
        depends = trained | {"betas": METHODS[name].betas}
        found.append(Stage(name, build, ("worlds",), depends))
    return tuple(found)


def _sizes(config: Config) -> zoo_world.Sizes:
    return zoo_world.Sizes(*(getattr(config, name) for name in zoo_world.Sizes._fields))


def _seeds(config: Config) -> np.ndarray:
    """Those that choose strengths, then as many that are measured."""
    return np.r_[: config.seeds, config.seed : config.seed + config.seeds]


def _worlds(config: Config) -> Compute:
    """The tree is a World of arrays [seeds, ...]. Rows "best_kl" and "best_win_rate" [seeds, ...]
    of measured seeds: the highest win rate of any policy at a KL to the reference."""
    all = enumerated.completions(config.symbols, config.longest)

    def make(seed: jax.Array) -> dict[str, Any]:
        return zoo_world.draw(jax.random.key(seed), _sizes(config), all)._asdict()

    def best(world: Mapping[str, Any]) -> Any:
        following = enumerated.next_log_probs(world["reference"], all.prefixes)
        log_p = enumerated.token_log_probs(following, all).sum(-1)
        wins = enumerated.wins_against(log_p, world["reward"])
        return enumerated.best_possible(log_p, wins, jnp.asarray(STRENGTHS))

    programs = [jax.jit(jax.vmap(x)) for x in (make, best)]
    shapes = jax.eval_shape(programs[0], _seeds(config))

    def compute() -> tuple[Any, Mapping[str, Any]]:
        worlds = programs[0](_seeds(config))
        kl, wins = (np.asarray(x)[config.seeds :] for x in programs[1](worlds))
        return worlds, {"best_kl": kl, "best_win_rate": wins}

    def plan(mesh: Any) -> Mapping[str, Program]:
        return {
            "draw": Program(programs[0], (_placed(_seeds(config), mesh),)),
            "best": Program(programs[1], (_placed(shapes, mesh),)),
        }

    return Compute(compute, shapes, plan)


def _placed(tree: Any, mesh: Any) -> Any:
    """The shapes of the tree's arrays, on every device."""
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, tree))
    return with_shardings(shapes, shard_tree(shapes, REPLICATED, mesh))


@functools.cache
def _program(names: tuple[str, ...], symbols: int, longest: int, *how: Any) -> Any:
    """One for all stages, so that it is compiled once."""
    return zoo_training.trained(names, enumerated.completions(symbols, longest), *how)


def _trained(config: Config, name: str, found: Mapping[str, Artefact]) -> Compute:
    """Rows "tuning/<measure>" and "test/<measure>" [strengths, seeds, points]; value "strength",
    the index of the one with the highest mean win rate on tuning seeds at the end."""
    program = _program(
        config.methods, config.symbols, config.longest,
        config.rate, config.steps // config.every, config.every,
    )  # fmt: skip
    index, betas = config.methods.index(name), METHODS[name].betas
    strengths = np.repeat(np.array(betas, np.float32), config.seeds)
    parts = {"tuning": 0, "test": config.seeds}

    def every_strength(first: int, x: jax.Array) -> jax.Array:
        """Of an array [all seeds, ...], the seeds of a part, once for each strength."""
        part = jax.lax.slice_in_dim(x, first, first + config.seeds)
        return jnp.tile(part, (len(betas),) + (1,) * (x.ndim - 1))

    def compute() -> tuple[None, Mapping[str, Any]]:
        worlds = World(**materialise(found["worlds"].weights(), make_mesh(config.mesh)))
        rows: dict[str, Any] = {}
        for part, first in parts.items():
            here = jax.tree.map(functools.partial(every_strength, first), worlds)
            for measure, x in program(index, here, strengths)._asdict().items():
                rows[f"{part}/{measure}"] = np.asarray(x).reshape(len(betas), config.seeds, -1)
        best = int(np.argmax(rows["tuning/win_rate"][:, :, -1].mean(1)))
        return None, {"strength": best} | rows

    def plan(mesh: Any) -> Mapping[str, Program]:
        worlds = World(**found["worlds"].weights().abstract)
        tile = functools.partial(every_strength, 0)
        shapes = jax.eval_shape(functools.partial(jax.tree.map, tile), worlds)
        return {"train": Program(program, _placed((np.int32(index), shapes, strengths), mesh))}

    return Compute(compute, plan=plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return zoo_report.results(
        {
            name: (artefacts[name].values["strength"], artefacts[name].rows)
            for name in config.methods
        },
        artefacts["worlds"].rows,
        config.every,
        folder,
    )


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
