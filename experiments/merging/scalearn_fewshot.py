"""What frozen adapters of other tasks are worth to a task of fifty images, by scales alone.

Paper: Frohmann et al. 2023 (ScaLearn, arXiv 2310.01217). A residual perceptron is pretrained on
four tasks, digits changed in four ways, and frozen. An adapter is trained for each of them. For a
fifth task there are 50 images: an adapter of its own is trained on them, and joins the other four;
then only the scales with which the five outputs are summed are learnt, and the task's head. The
scales are vectors or numbers, for each block or shared by all. Compared are the task's own adapter
alone, attention fusion of the five (AdapterFusion, arXiv 2005.00247, without its regulariser) and
their plain average. Each seed has another fifth task.

Claim: scales are as good as attention fusion with a fraction of its numbers, and better than the
task's own adapter.

    python -m experiments.merging.scalearn_fewshot smoke     # two seeds: 15 s
    python -m experiments.merging.scalearn_fewshot laptop    # ten seeds: 11 minutes

Measured at `laptop` (two CPU cores, 2026-11): vectors of scales are 2.6 points better than the
task's own adapter, and 2.1 better than fusion with 38 times as many numbers; one vector for all
blocks is as good (2.3 points). A number for each adapter is worth no more than the own adapter.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.merging.common import reporting
from experiments.merging.parts import fewshot
from experiments.merging.parts.adapted import Combination
from kd_jax.launch import plots, run
from kd_jax.launch.claims import Claim, Results, Table, above
from kd_jax.launch.config import Settings, check_distinct, check_positive, identity
from kd_jax.launch.stages import Stage
from kd_jax.models.residual_mlp import ResidualMLPConfig
from kd_jax.trees import size

Method = Literal["vectors", "numbers", "vectors_shared", "numbers_shared", "fusion", "average"]
METHODS: tuple[Method, ...] = (
    "vectors", "numbers", "vectors_shared", "numbers_shared", "fusion", "average"
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    methods: tuple[Method, ...] = METHODS
    """How the adapters are combined, besides the target's own alone."""
    split: Literal["test", "validation"] = "test"
    """Images that are measured; settings are chosen on validation, held-out training images."""
    seeds: int = 5
    """Repetitions of everything; seed s has task s, counted round, as its target."""
    seed: int = 0
    """The first of them."""
    width: int = 64
    """Width of the perceptron's stream."""
    depth: int = 4
    """Blocks, with an adapter behind each."""
    hidden: int = 64
    """Width inside the blocks."""
    adapter: int = 8
    """Dimensions of an adapter's bottleneck."""
    pretraining_images: int = 600
    """Images in pretraining, shared out among the sources."""
    few: int = 50
    """Images of the target."""
    rate: float = 3e-3
    """Peak learning rate of AdamW for the perceptron, adapters and fusion."""
    scale_rate: float = 6e-3
    """Peak learning rate for scales, the paper's."""
    dropout: float = 0.3
    """Of vectors of scales, the paper's; numbers have none."""
    pretraining_steps: int = 600
    """Steps of pretraining."""
    adapter_steps: int = 1000
    """Steps of a source's adapter."""
    steps: int = 600
    """Steps on the target's images."""
    batch_size: int = 32
    """Images in a batch."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "width", "depth", "hidden", "adapter", "pretraining_images", "few")
        check_positive(self, "rate", "scale_rate", "pretraining_steps", "adapter_steps", "steps")
        check_positive(self, "batch_size")
        check_distinct(self, "methods")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, takes a number in [0, 1)")
        if self.few < self.batch_size:
            raise ValueError(f"few: got {self.few}, takes at least batch_size, {self.batch_size}")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")

    @property
    def sizes(self) -> ResidualMLPConfig:
        return ResidualMLPConfig(
            inputs=64, width=self.width, depth=self.depth, hidden=self.hidden, classes=10
        )

    @property
    def combinations(self) -> dict[str, Combination]:
        every = fewshot.combinations(self.adapter, self.dropout)
        return {name: every[name] for name in ("own", *self.methods)}

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


PRESETS = {
    "smoke": Config(
        methods=("vectors", "average"),
        seeds=2,
        depth=2,
        width=32,
        hidden=32,
        pretraining_steps=200,
        adapter_steps=200,
        steps=60,
    ),
    "laptop": Config(seeds=10, seed=10),
}


def _claim(ours: str, theirs: str, statement: str, paper: str, tried: str = "") -> Claim:
    return Claim(
        f"{statement} (difference in points of accuracy).",
        "arXiv 2310.01217, tables for GLUE and SuperGLUE",
        paper,
        reporting.difference(("accuracy", ours), ("accuracy", theirs)),
        above(0.0) if theirs != "fusion" else above(-1.0),
        tried,
    )


CLAIMS = (
    _claim(
        "vectors",
        "own",
        "ScaLearn is better than the target's own adapter alone",
        "GLUE 85.36 against 83.83, SuperGLUE 75.55 against a lower single adapter",
    ),
    _claim(
        "numbers_shared",
        "own",
        "ScaLearnUniform++, five numbers, is better than the target's own adapter alone",
        "GLUE 85.14 against 83.83",
        "On validation images of five other seeds: 0.4 points above it, and 0.9 below it with half "
        "the pretraining images and half the steps.",
    ),
    _claim(
        "vectors",
        "fusion",
        "ScaLearn is not worse than attention fusion by a point or more",
        "GLUE 85.36 against 85.01, SuperGLUE 75.55 against 73.60",
    ),
    _claim(
        "vectors",
        "average",
        "ScaLearn is better than the plain average of the adapters' outputs",
        "learnt scales are better than fixed ones (UNVERIFIED)",
    ),
)


def stages(config: Config) -> tuple[Stage, ...]:
    found = []
    whole = identity(config)

    def depends(seed: int, *fields: str) -> dict[str, Any]:
        return {"seed": seed} | {name: whole[name] for name in fields}

    learning = ("rate", "batch_size", "adapter")
    for seed in config.repetitions:
        trunk, own = f"pretrained_{seed}", f"own_{seed}"
        adapters = {task: f"adapter_{task}_{seed}" for task in fewshot.sources_of(seed)}
        sizes = ("width", "depth", "hidden", "pretraining_images", "pretraining_steps")
        found.append(
            Stage(
                trunk,
                functools.partial(fewshot.pretrained, config, seed),
                (),
                depends(seed, *sizes, "rate", "batch_size"),
            )
        )
        found += [
            Stage(
                name,
                functools.partial(fewshot.source_adapter, config, seed, task),
                (trunk,),
                depends(seed, *learning, "adapter_steps"),
            )
            for task, name in adapters.items()
        ]
        found += [
            Stage(
                f"{name}_{seed}",
                functools.partial(fewshot.few, config, seed, name),
                (trunk,) if name == "own" else (trunk, *adapters.values(), own),
                depends(seed, *learning, "steps", "few", "scale_rate", "dropout", "split"),
            )
            for name in config.combinations
        ]
    return tuple(found)


def numbers(config: Config, name: str) -> int:
    """How many numbers a combination trains, the head's not counted."""
    init, adapters = config.combinations[name].init, len(fewshot.POOL)
    made = jax.eval_shape(
        lambda key: init(key, config.depth, adapters, config.width), jax.random.key(0)
    )
    return size(made)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    names, seeds = list(config.combinations), config.repetitions
    accuracy = {
        name: [artefacts[f"{name}_{s}"].series("held_out/accuracy")[1][-1] for s in seeds]
        for name in names
    }
    counts = {name: numbers(config, name) for name in names}
    labels = {name: config.combinations[name].label for name in names}
    rows = [
        {
            "combination": labels[name],
            "numbers trained": counts[name],
            "accuracy": reporting.over_seeds(accuracy[name]),
            "less the own adapter": reporting.over_seeds(
                np.subtract(accuracy[name], accuracy["own"])
            ),
        }
        for name in names
    ]
    title = f"{config.few} images of a new task, {config.seeds} seeds (95 %)"
    drawn = {
        "gain": plots.ranking(
            folder / "plots" / "gain.png",
            {row["combination"]: row["less the own adapter"] for row in rows[1:]},
            x=f"{config.split} accuracy less that of the own adapter alone (points)",
            title=title,
        ),
        "numbers": plots.lines(
            folder / "plots" / "numbers.png",
            {
                labels[name]: plots.Line([counts[name]], [float(np.mean(accuracy[name]))])
                for name in names
                if counts[name]
            },
            x="numbers trained, besides the head",
            y=f"{config.split} accuracy (%)",
            title=title,
            log_x=True,
            reference=(labels["average"], float(np.mean(accuracy["average"])))
            if "average" in names
            else None,
        ),
    }
    values = {"accuracy": accuracy, "numbers": counts}
    return Results(values, [Table(f"Accuracy (%) with {title}", rows)], drawn)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
