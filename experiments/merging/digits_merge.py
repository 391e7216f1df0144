"""Merging specialists of changed digits: which method keeps most of them, and why.

Papers: model soups (arXiv 2203.05482), task arithmetic (2212.04089), TIES (2306.01708), DARE
(2311.03099), DELLA (2406.11617), model stock (2403.19522), breadcrumbs (2312.06795), Fisher merging
(2111.09832), RegMean (2212.09849), AdaMerging (2310.02575), Twin-Merging (2406.15479). A perceptron
is pretrained on a few digits changed in several ways (turned, mirrored, ...), so that it knows a
little of every task as a large pretrained model does; one specialist a task is fine-tuned from it
on all digits, with its head frozen. Two to six of them are merged by every method, with the scale
that its paper takes without data and with one chosen on held-out training images. Normalised
accuracy is the merged model's over the specialist's, a mean over tasks; each seed begins at another
task, so that the number of tasks is not mixed up with which they are.

Also: every step of TIES left out, with the signs of a multitask model as an upper bound; how many
entries are in conflict; task arithmetic by scale; single specialists under DARE, rescaled or not;
the way between two models, straight or on a sphere; tasks subtracted.

Claim: interference grows with the number of models, and TIES leaves more of them than sums do.

    python -m experiments.merging.digits_merge smoke     # two tasks, two seeds: 12 s
    python -m experiments.merging.digits_merge laptop    # six tasks, six seeds: 4 minutes

Measured at `laptop` (two CPU cores, 2026-11): of six specialists averaging keeps 80 %, task
arithmetic 81 % and TIES 83 % with scales chosen, TIES with the signs of a multitask model 92 %,
RegMean 90 % and Twin-Merging 99 %.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.merging.common import specialists
from experiments.merging.common.config import Common
from experiments.merging.common.tasks import changed
from experiments.merging.parts import digits_claims, digits_report, measures
from experiments.merging.parts.informed import Learning, measured
from experiments.merging.parts.methods import Sizes
from kd_jax.data import arrays
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_positive
from kd_jax.launch.stages import Stage, Training

CLAIMS = digits_claims.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    trim: float = 0.2
    """The share of each task vector that TIES keeps."""
    density: float = 0.3
    """The share that DARE and DELLA keep, at random."""
    epsilon: float = 0.15
    """How far DELLA's probabilities of keeping an entry are from the density, at most."""
    keep: float = 0.15
    """The share of each row that breadcrumbs keeps."""
    remove: float = 0.006
    """The share of each row, its largest entries, that breadcrumbs removes first."""
    negated: float = 0.5
    """Scale at which a task is subtracted."""

    informed: bool = True
    """Merges that look at data besides: Fisher, RegMean, AdaMerging, Twin-Merging."""
    adapt_steps: int = 1000
    """Steps of AdaMerging."""
    adapt_rate: float = 1e-3
    """Its learning rate, of Adam."""
    router_passes: int = 10
    """Passes of Twin-Merging's router over the training images."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "trim", "density", "epsilon", "keep", "negated")
        check_positive(self, "adapt_steps", "adapt_rate", "router_passes")
        for name in ("trim", "density", "keep"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes up to 1")

    @property
    def counts(self) -> range:
        """Numbers of specialists that are merged."""
        return range(2, self.tasks + 1)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.trim, self.density, self.epsilon, self.keep, self.remove)


PRESETS = {
    "smoke": Config(tasks=2, seeds=2, widths=(128, 128), steps=200, informed=False),
    # A seed begins at each of the tasks.
    "laptop": Config(seed=10, seeds=6),
}


def stages(config: Config) -> tuple[Stage, ...]:
    benchmark, counts, sizes = config.benchmark, config.counts, config.sizes
    merged = functools.partial(measures.merged, benchmark, counts, sizes)
    ablated = functools.partial(measures.ablated, benchmark, counts, sizes)
    swept = functools.partial(measures.swept, benchmark, config.negated)
    learning = Learning(config.adapt_steps, config.adapt_rate, config.router_passes)
    informed = functools.partial(measured, benchmark, counts, learning)
    multitask = tuple(
        Stage(
            f"multitask_{seed}",
            functools.partial(_multitask, config, seed),
            (f"pretrained_{seed}",),
            specialists.learning(config, seed) | {"tasks": list(config.names)},
        )
        for seed in config.repetitions
    )
    return (
        *specialists.stages(config),
        *multitask,
        *specialists.merging(config, "merged", merged),
        *specialists.merging(config, "ablated", ablated, others=("multitask",)),
        *specialists.merging(config, "swept", swept),
        *(specialists.merging(config, "informed", informed) if config.informed else ()),
    )


def _multitask(config: Config, seed: int, artefacts: Mapping[str, Any]) -> Training:
    """On the images of all tasks, with the steps of one."""

    def train() -> dict[str, Any]:
        return arrays.concatenate([changed(config.benchmark, x, "train") for x in config.names])

    start = artefacts[f"pretrained_{seed}"].weights()
    return specialists.training(config, start, train, seed, trunk=True)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    orders = {seed: config.order(seed) for seed in config.repetitions}
    return digits_report.results(
        config.names, config.counts, orders, config.informed, artefacts, folder
    )


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
