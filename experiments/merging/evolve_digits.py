"""Recipes of merges found by evolution, against a grid and against chance.

Papers: Akiba et al. 2024, evolutionary optimization of model merging recipes (arXiv 2403.13187);
unconstrained model merging (arXiv 2410.13699, of which only the abstract was read: UNVERIFIED). A
residual perceptron is pretrained on a few digits changed in several ways; specialists of one change
each go on from it, with stem and head frozen. Two to four of them are merged.

In parameter space: DARE-TIES with a density and a weight for each model and half of the blocks,
found by CMA-ES, and by as many random draws; task arithmetic with one scale from a grid as fine,
and with a coefficient for each leaf and model, found by CMA-ES. In data-flow space: the blocks of
two specialists, or of their merge and one of them, passed through in an order that CMA-ES finds.
All are chosen on a few held-out training images, on which the best of many looks better than it is;
the gap to the test images is shown.

Claim: evolution finds better recipes than chance and than a grid, a merge that is better at all
tasks than any specialist, and a path that is better than either model.

    python -m experiments.merging.evolve_digits smoke     # two tasks, two seeds: 20 s
    python -m experiments.merging.evolve_digits laptop    # four tasks, five seeds: 3 minutes

Needs the extra `evolve` (cmaes).

Measured at `laptop` (two CPU cores, 2026-11), four specialists: CMA-ES fits the images that it sees
6.7 points better than chance, and is 17 points above the best specialist on test images; of 3.1
points over the grid on seen images 1.7 are left on test images, which is within the spread of
seeds. A path through two specialists is 3.9 points above the better of them; one through their
merge keeps to the merge's own blocks and gains nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merging.common import reporting, specialists
from experiments.merging.common.config import OfImages
from experiments.merging.common.tasks import Benchmark
from experiments.merging.parts import searches
from kd_jax.launch import plots, run
from kd_jax.launch.claims import Claim, Results, Table, above
from kd_jax.launch.config import check_positive
from kd_jax.launch.stages import Stage

SOURCE = "arXiv 2403.13187"
ARMS = ("default recipe", "grid", "random", "CMA-ES", "CMA-ES by leaf")
SEARCHES = ("random", "CMA-ES", "CMA-ES by leaf")  # in the order in which they try
PATHS = ("path", "random path", "merge, then path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OfImages):
    tasks: int = 4
    """Specialists: the first so many tasks; two and more of them are merged."""
    width: int = 64
    """Width of the stream."""
    hidden: int = 64
    """Width inside the blocks."""
    depth: int = 4
    """Blocks of a model."""
    fitness: int = 50
    """Held-out training images of each task that searches see."""
    generations: int = 40
    """Generations of CMA-ES for recipes."""
    population: int = 12
    """Candidates of a generation; the others try as many in all."""
    rounds: int = 2
    """How often a path goes through all blocks of both models, at most."""
    flow_generations: int = 80
    """Generations of CMA-ES for paths."""
    flow_population: int = 16
    """Candidates of a generation, for paths."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            self, "width", "hidden", "depth", "fitness", "generations", "population", "rounds"
        )
        check_positive(self, "flow_generations", "flow_population")

    @property
    def benchmark(self) -> Benchmark:
        return searches.benchmark(self.width, self.hidden, self.depth)

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"width": self.width, "hidden": self.hidden, "depth": self.depth}

    @property
    def counts(self) -> range:
        """Numbers of specialists that are merged."""
        return range(2, self.tasks + 1)


PRESETS = {
    "smoke": Config(
        tasks=2,
        seeds=2,
        width=32,
        hidden=32,
        depth=2,
        steps=150,
        generations=4,
        population=6,
        flow_generations=4,
        flow_population=6,
    ),
    "laptop": Config(seed=10),
}


def _claim(statement: str, paper: str, ours: str, theirs: str, source: str = SOURCE) -> Claim:
    """ours, theirs: "arm/measure", of the largest number of tasks."""
    first, second = (tuple(x.split("/")) for x in (ours, theirs))
    return Claim(
        f"{statement} (difference in points).",
        source,
        paper,
        reporting.difference(first, second),
        above(0.0),
    )


CLAIMS = (
    _claim(
        "CMA-ES finds recipes that fit the images it sees better than as many random draws do",
        "not compared",
        "CMA-ES/fitness",
        "random/fitness",
    ),
    _claim(
        "On test images CMA-ES's recipe is better than the best scale of task arithmetic from a "
        "grid as fine",
        "not compared",
        "CMA-ES/test",
        "grid/test",
    ),
    _claim(
        "CMA-ES's merge is better over all tasks than the best specialist",
        "MGSM-JA: sources 9.6, 18.4 and 30.0, merged 52.0",
        "CMA-ES/test",
        "best specialist/test",
    ),
    _claim(
        "A path through the blocks of two specialists is better over both tasks than the better "
        "of them",
        "a path alone is better than its sources (table UNVERIFIED)",
        "path/test",
        "best of two/test",
    ),
    _claim(
        "A path through a merge of two and one of them is better than the merge",
        "MGSM-JA: 52.0 merged, 55.6 with a path through it",
        "merge, then path/test",
        "CMA-ES of two/test",
    ),
    _claim(
        "A coefficient for each leaf, found by CMA-ES, is better on test images than one scale for "
        "all from a grid as fine",
        "layer-wise coefficients are searched (UNVERIFIED)",
        "CMA-ES by leaf/test",
        "grid/test",
        "arXiv 2410.13699 (UNVERIFIED)",
    ),
)


def stages(config: Config) -> tuple[Stage, ...]:
    search = functools.partial(searches.merged, config)
    return (*specialists.stages(config), *specialists.merging(config, "searched", search))


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = [artefacts[f"searched_{seed}"] for seed in config.repetitions]

    def over(key: str) -> list[float]:
        return [x.values[key] for x in found]

    counts, most = list(config.counts), config.counts[-1]
    values: dict[str, Any] = {
        arm: {"fitness": over(f"{arm}/{most}/fitness"), "test": over(f"{arm}/{most}/test")}
        for arm in ARMS
    }
    values |= {
        arm: {m: over(f"{arm}/{m}") for m in ("fitness", "test", "layers", "second model")}
        for arm in PATHS
    }
    values["best specialist"] = {"test": over(f"best specialist/{most}/test")}
    values["best of two"] = {"test": over("best specialist/2/test")}
    values["CMA-ES of two"] = {"test": over("CMA-ES/2/test")}
    evaluations = config.generations * config.population
    recipes = [
        {"search": arm}
        | {
            f"T={count}, {m}": reporting.over_seeds(over(f"{arm}/{count}/{m}"))
            for count in counts
            for m in ("fitness", "test")
        }
        for arm in ARMS
    ]
    recipes.append(
        {"search": "best specialist"}
        | {f"T={n}, test": reporting.over_seeds(over(f"best specialist/{n}/test")) for n in counts}
    )
    paths = [
        {"of two": arm} | {m: reporting.over_seeds(x) for m, x in values[arm].items()}
        for arm in (*PATHS, "best of two", "CMA-ES of two")
    ]
    tables = [
        Table(f"Accuracy over tasks (%), {evaluations} evaluations each", recipes),
        Table("Paths: accuracy over two tasks (%), and how many blocks they take", paths),
    ]
    lines = {
        arm: reporting.line(counts, np.transpose([over(f"{arm}/{n}/test") for n in counts]))
        for arm in (*ARMS, "best specialist")
    }
    running = {
        arm: reporting.line(
            list(range(1, evaluations + 1)),
            np.stack([_padded(x.rows[f"{arm}/best"], evaluations) for x in found]),
        )
        for arm in SEARCHES
    }
    gaps = {
        arm: {
            name: reporting.over_seeds(values[arm][m])
            for m, name in (("fitness", "images of the search"), ("test", "test images"))
        }
        for arm in (*ARMS, *PATHS)
    }
    drawn = folder / "plots"
    seeds = f"{config.seeds} seeds (95 %)"
    return Results(
        values,
        tables,
        {
            "test": plots.lines(
                drawn / "test.png",
                lines,
                x="specialists merged",
                y="test accuracy over tasks (%)",
                title=f"Recipes chosen on {config.fitness} images a task, {seeds}",
            ),
            "search": plots.lines(
                drawn / "search.png",
                {arm: _thinned(line) for arm, line in running.items()},
                x="candidates tried",
                y="best accuracy so far (%)",
                title=f"Search for {most} specialists, {seeds}",
                reference=("best of the grid", float(np.mean(values["grid"]["fitness"]))),
            ),
            "gap": plots.bars(
                drawn / "gap.png",
                {_wrapped(arm): bars for arm, bars in gaps.items()},
                y="accuracy over tasks (%)",
                title=f"What is left on test images: recipes of {most}, paths of two, {seeds}",
            ),
        },
    )


def _padded(scores: np.ndarray, length: int) -> np.ndarray:
    """A search that ended early stays where it was."""
    return np.pad(scores, (0, length - len(scores)), mode="edge")


def _thinned(line: plots.Line, points: int = 24) -> plots.Line:
    at = np.unique(np.linspace(0, len(line.x) - 1, points).astype(int))
    return plots.Line(*([column[i] for i in at] for column in line))  # pyright: ignore[reportOptionalIterable, reportOptionalSubscript]


def _wrapped(name: str) -> str:
    return name.replace(" ", "\n").replace(",", "")


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
