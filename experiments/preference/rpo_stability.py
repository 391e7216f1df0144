"""RPO keeps the chosen likely where DPO does not; whether that is worth reward is another question.

Paper: Liu et al. 2024, Provably mitigating overoptimization in RLHF: your SFT loss is implicitly an
adversarial regularizer (RPO, arXiv 2405.16436).
A bandit of twenty actions; pairs show six of them, from the middle of the ranking. The policy is
linear in features, so that it extrapolates to the rest: features that make up the true reward
("informative") or have nothing to do with it ("uninformative"). DPO and RPO then train for long.

Claims: under DPO the chosen actions' likelihood collapses and probability goes where no pair has
been, under RPO neither. Reward follows where extrapolation misleads, and not where it is right:
there DPO ends higher, against the paper's headline.

    python -m experiments.preference.rpo_stability smoke     # three seeds, few steps: 5 s
    python -m experiments.preference.rpo_stability laptop    # 200 seeds: 10 s
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.preference.parts import rpo_bandit
from kd_jax.launch import plots, run
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.effects import over_seeds
from kd_jax.launch.plots import Line
from kd_jax.launch.sharding import shard_tree, with_shardings
from kd_jax.launch.stages import REPLICATED, Compute, Program, Stage

WORLDS = {"informative": True, "uninformative": False}
ETAS = (0.0, 0.2, 1.0)
LABELS = ("DPO", "RPO, eta 0.2", "RPO, eta 1")
DPO, RPO, STRONG = range(3)


def _effect(name: str) -> Callable[[Results], Effect]:
    return lambda results: Effect(*results.values["effects"][name])


CLAIMS = (
    Claim(
        "Under DPO the chosen become unlikely (informative features; change of their mean "
        "log-probability in nats).",
        "arXiv 2405.16436, figure 1 (number UNVERIFIED)",
        "the chosen log-probability decreases during DPO",
        _effect("dpo_chosen"),
        below(-10.0),
    ),
    Claim(
        "Under RPO they do not (worse of two etas and two kinds of features; change in nats).",
        "arXiv 2405.16436, figure 1 (number UNVERIFIED)",
        "RPO keeps the chosen log-probability",
        _effect("rpo_chosen"),
        above(-1.0),
    ),
    Claim(
        "DPO puts more probability on actions that no pair shows than RPO (informative features, "
        "eta 0.2; difference).",
        "arXiv 2405.16436, section 1",
        "overoptimisation: out-of-distribution actions are preferred",
        _effect("uncovered"),
        above(0.0),
    ),
    Claim(
        "DPO's true reward falls further from its best along the training than RPO's (informative "
        "features, eta 0.2; difference).",
        "arXiv 2405.16436, section 1",
        "DPO overoptimises, RPO does not",
        _effect("fall"),
        above(0.0),
    ),
    Claim(
        "Where features mislead, RPO ends at the higher true reward (uninformative features, eta "
        "0.2; difference).",
        "arXiv 2405.16436, section 6",
        "RPO beats DPO",
        _effect("uninformative"),
        above(0.0),
        "On seeds 0 to 199 the difference was 0.11: features that mislead take DPO to an action at "
        "random, whose reward is 0 on average, and RPO's share of the chosen is worth 0.05. RPO's "
        "gain is in the spread: DPO's ends differ by 1 from bandit to bandit, RPO's by 0.3.",
    ),
    Claim(
        "Where they do not, DPO does: the paper's gain is not there (informative features, eta "
        "0.2; DPO's true reward less RPO's).",
        "arXiv 2405.16436, section 6, turned round",
        "RPO beats DPO",
        _effect("informative"),
        above(0.0),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    actions: int = 20
    """Actions of the bandit."""
    covered: int = 6
    """Actions that pairs show."""
    features: int = 4
    """Features of an action."""
    pairs: int = 30
    """Pairs to learn preferences from."""
    beta: float = 0.1
    """Of DPO and RPO."""
    rate: float = 0.05
    """Learning rate of Adam."""
    steps: int = 2000
    """Steps of it."""
    every: int = 50
    """Steps between two measurements."""
    seeds: int = 200
    """Bandits."""
    seed: int = 1000
    """The first of them; sizes and rate were chosen on seeds from 0."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "actions", "features", "pairs", "beta", "rate", "steps", "every")
        if not 2 <= self.covered <= self.actions:
            raise ValueError(
                f"covered: got {self.covered}, takes numbers from 2 to actions, {self.actions}"
            )
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")
        if self.steps % self.every:
            raise ValueError(f"steps: got {self.steps}, takes a multiple of every, {self.every}")


PRESETS = {"smoke": Config(steps=100, seeds=3), "laptop": Config()}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        Stage(name, lambda _, linear=linear: _trained(config, linear))
        for name, linear in WORLDS.items()
    )


def _trained(config: Config, linear: bool) -> Compute:
    """Rows "reward", "chosen" and "uncovered", [etas, seeds, points]."""
    sizes = rpo_bandit.Sizes(*(getattr(config, name) for name in rpo_bandit.Sizes._fields))
    points = config.steps // config.every
    program = rpo_bandit.trained(sizes, linear, config.beta, config.rate, points, config.every)
    arguments = (config.seed + jnp.arange(config.seeds), jnp.array(ETAS))

    def compute() -> tuple[None, Mapping[str, Any]]:
        return None, jax.tree.map(np.asarray, program(*arguments)._asdict())

    def plan(mesh: Any) -> Mapping[str, Program]:
        shapes = jax.eval_shape(lambda: arguments)
        placed = with_shardings(shapes, shard_tree(shapes, REPLICATED, mesh))
        return {"train": Program(program, placed)}

    return Compute(compute, plan=plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    rows = {name: artefacts[name].rows for name in WORLDS}
    steps = [config.every * i for i in range(config.steps // config.every + 1)]
    effects = {name: over_seeds(x) for name, x in _effects(rows).items()}
    return Results(
        values={"effects": {name: list(effect) for name, effect in effects.items()}},
        tables=[
            Table(
                f"After {config.steps} steps, {config.seeds} bandits",
                [
                    {"features": name, "loss": LABELS[i], **_ends(world, i)}
                    for name, world in rows.items()
                    for i in range(len(ETAS))
                ],
            )
        ],
        plots={
            f"{measure}_{name}": _plot(
                folder / f"{measure}_{name}.png",
                world[measure],
                steps,
                y,
                f"{name} features".capitalize(),
            )
            for name, world in rows.items()
            for measure, y in (
                ("chosen", "mean log p(chosen), nats"),
                ("reward", "true reward, standard deviations"),
            )
        },
    )


def _effects(rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """{effect: [seeds]}."""
    known = rows["informative"]
    change = {name: x["chosen"][..., -1] - x["chosen"][..., 0] for name, x in rows.items()}
    fall = known["reward"].max(-1) - known["reward"][..., -1]
    end = {name: x["reward"][..., -1] for name, x in rows.items()}
    # The worse of the means, not the mean of the worse.
    worst = min((x[i] for x in change.values() for i in (RPO, STRONG)), key=np.mean)
    return {
        "dpo_chosen": change["informative"][DPO],
        "rpo_chosen": worst,
        "uncovered": known["uncovered"][DPO, :, -1] - known["uncovered"][RPO, :, -1],
        "fall": fall[DPO] - fall[RPO],
        "uninformative": end["uninformative"][RPO] - end["uninformative"][DPO],
        "informative": end["informative"][DPO] - end["informative"][RPO],
    }


def _ends(world: Mapping[str, np.ndarray], i: int) -> dict[str, Effect]:
    reward = world["reward"][i]
    return {
        "true reward": over_seeds(reward[:, -1]),
        "below its best": over_seeds(reward.max(1) - reward[:, -1]),
        "worse than the reference": over_seeds(reward[:, -1] < reward[:, 0] - 1e-3),
        "log p(chosen)": over_seeds(world["chosen"][i, :, -1]),
        "on uncovered actions": over_seeds(world["uncovered"][i, :, -1]),
    }


def _plot(path: Path, measure: np.ndarray, steps: list[int], y: str, title: str) -> Path:
    series = {}
    for label, paths in zip(LABELS, measure, strict=True):
        points = [over_seeds(x) for x in paths.T]
        middle, low, high = ([e[i] for e in points] for i in range(3))
        series[label] = Line(steps, middle, low, high)
    return plots.lines(path, series, x="step", y=y, title=title)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
