"""A few weights of one ancestor start transformers of every depth better than chance does.

Papers: TLEG, Xia et al. 2024 (arXiv 2312.05614), and SWS, Xia et al. 2024 (arXiv 2404.16897).
Tiny vision transformers, the ancestors, learn Fashion-MNIST from a residual network's outputs
alone, with their blocks bound: on a line through the layers (TLEG), the same within each of three
stages (SWS), or all the same. Descendants of several depths start from what is bound, and all of
their weights are then trained on labels, for one epoch. Beside them are random weights, and the
stages in another order.

An ordinary transformer of the ancestors' sizes, trained on labels for as long as they are, says
what that takes from scratch, and whether its layers lie near lines: R^2 over all kernels.

Claim: descendants of genes are above random weights after an epoch, and the place in the network of
what they are given matters.

    python -m experiments.distillation.learngene_depths smoke     # digits, a line alone: 12 s
    python -m experiments.distillation.learngene_depths laptop    # Fashion-MNIST: 4 minutes

`laptop` needs Fashion-MNIST (environment KD_JAX_DATA or a download).

Measured at `laptop` (two CPU cores, 2026-11): descendants of a line, of stages and of one block
alike are 20 points above random weights after the epoch, which adds nothing to them: untrained they
have the ancestors' 71 to 76 % at other depths too. Stages in another order start from chance. The
layers of the ordinary transformer are not near lines: R^2 is 0.202, and 0.201 before training.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from experiments.distillation.common import pupils
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import expansions, learngene_report
from experiments.distillation.parts.expansions import Genes
from kd_jax.launch import run, weights
from kd_jax.launch import stages as launch_stages
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive, identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training
from kd_jax.models.resnet import ResNetConfig
from kd_jax.models.vit import ViTConfig
from kd_jax.objectives.distil import distil, soft_labels
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.repetition import batched
from kd_jax.steps import make_train_step
from kd_jax.types import Model, Objective, PyTree

CLAIMS = learngene_report.CLAIMS

Name = Literal["random", "block", "shuffled", "stages", "line"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teacher: ResNetConfig
    ancestor: ViTConfig
    """Of the images as they are; descendants differ in depth."""
    stages: int = 3
    """Stages of SWS."""
    depths: tuple[int, ...] = (4, 6, 9)
    """Blocks of descendants."""
    starts: tuple[Name, ...] = get_args(Name)
    """What descendants start from."""
    scratch: bool = True
    """An ordinary transformer besides."""
    learn_genes: Learning
    """How ancestors learn, and the ordinary transformer."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "depths")
        check_distinct(self, "depths", "starts")
        if self.ancestor.depth < 3:
            raise ValueError(f"ancestor.depth: got {self.ancestor.depth}, takes at least 3")
        if not 2 <= self.stages <= min(self.ancestor.depth, *self.depths):
            raise ValueError(
                f"stages: got {self.stages}, takes from 2 up to the smallest depth, "
                f"{min(self.ancestor.depth, *self.depths)}"
            )


PRESETS = {
    "smoke": Config(
        pictures=Pictures(images=400, validation=100, test=200),
        teacher=ResNetConfig(blocks=(1,), widths=(8,), channels=4),
        ancestor=ViTConfig(image=8, patch=4, channels=1, width=8, depth=3, heads=2, mlp=16),
        learn_teacher=Learning(rate=1e-2, steps=20, batch_size=64),
        learn_genes=Learning(rate=1e-2, steps=20, batch_size=64),
        learn=Learning(rate=1e-2, steps=6, batch_size=64),
        stages=2,
        depths=(2,),
        starts=("line",),
        scratch=False,
        seeds=2,
        score_batch=200,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=2000, validation=500, test=2000),
        teacher=ResNetConfig(blocks=(1, 1, 1), widths=(8, 16, 32), channels=4),
        ancestor=ViTConfig(image=28, patch=7, channels=1, width=32, depth=6, heads=4, mlp=64),
        learn_teacher=Learning(rate=3e-3, steps=400, batch_size=64),
        learn_genes=Learning(rate=3e-3, steps=300, batch_size=64),
        learn=Learning(rate=3e-3, steps=31, batch_size=64),
        seeds=4,
        seed=10,
    ),
}


def genes_of(config: Config) -> dict[str, Genes]:
    """Of the ancestors that descendants start from."""
    sizes = config.ancestor
    found = {
        "line": expansions.line(sizes),
        "stages": expansions.shared(sizes, config.stages),
        "block": expansions.shared(sizes, 1),
    }
    wanted = {_kind(start) for start in config.starts}
    return {kind: genes for kind, genes in found.items() if kind in wanted}


def stages(config: Config) -> tuple[Stage, ...]:
    # Ancestors do not depend on how descendants learn.
    early = pupils.depends(dataclasses.replace(config, learn=config.learn_genes), config.ancestor)
    found = [pupils.teacher(config, config.teacher), pupils.outputs(config, config.teacher, ())]
    for kind, genes in genes_of(config).items():
        build = functools.partial(_ancestor, config, genes)
        about = {"genes": kind, "stages": config.stages if kind == "stages" else 1}
        found.append(Stage(f"genes_{kind}", build, ("teacher", "teacher_outputs"), early | about))
    if config.scratch:
        sizes = {"network": identity(config.ancestor), "seeds": list(config.repetitions)}
        found.append(Stage("ordinary", functools.partial(_ordinary, config), (), early))
        found.append(Stage("lines", functools.partial(_lines, config), ("ordinary",), sizes))
    for depth in config.depths:
        network = expansions.deep(config.ancestor, depth)
        for start in config.starts:
            build = functools.partial(_descendant, config, start, depth)
            needs = () if start == "random" else (f"genes_{_kind(start)}",)
            about = pupils.depends(config, network, start=start)
            found.append(Stage(f"{start}_{depth}", build, needs, about))
    return tuple(found)


def _kind(start: str) -> str:
    return "stages" if start == "shuffled" else start


def _ancestor(config: Config, genes: Genes, found: pupils.Found) -> Training:
    model = expansions.ancestor(config.ancestor, genes)
    # No labels; the released code's mean over classes is another scale, which AdamW does not see.
    objective = distil(model, stored_teacher(), {"kd": soft_labels()}, teacher_policy=nothing)
    return _trained(config, model, objective, found, read=pupils.Read(config.teacher))


def _ordinary(config: Config, found: pupils.Found) -> Training:
    model = expansions.network(config.ancestor)
    return _trained(config, model, supervise(model, {"ce": label_cross_entropy}), found)


def _trained(
    config: Config, model: Model, objective: Objective, found: pupils.Found, **how: Any
) -> Training:
    learning = config.learn_genes
    step = make_train_step(objective, learning.optimizer())
    return pupils.students(config, model, step, found, learning=learning, over=batched, **how)


def _descendant(config: Config, start: str, depth: int, found: pupils.Found) -> Training:
    model = expansions.network(expansions.deep(config.ancestor, depth))
    objective = supervise(model, {"ce": label_cross_entropy})
    step = make_train_step(objective, config.learn.optimizer())
    own = None if start == "random" else _start(config, start, depth, found)
    return pupils.students(config, model, step, found, start=own, over=batched)


def _start(config: Config, start: str, depth: int, found: pupils.Found) -> weights.Weights:
    """Weights [S, ...]: of each seed's ancestor."""
    kind = _kind(start)
    expand = genes_of(config)[kind].expand

    def one(genes: PyTree) -> PyTree:
        return expand(expansions.shuffled(genes) if start == "shuffled" else genes, depth)

    source = found[f"genes_{kind}"].weights()
    return expansions.derived(source, lambda tree: jax.vmap(one)(tree["model"]))


def _lines(config: Config, found: pupils.Found) -> Compute:
    """rows: "trained/<kernel>" and "drawn/<kernel>" [S], R^2 of lines, "all" among the kernels."""

    def measured(params: PyTree) -> dict[str, np.ndarray]:
        each = [
            expansions.blocks(jax.tree.map(lambda x, s=s: np.asarray(x[s]), params))
            for s in range(config.seeds)
        ]
        named = {name: [[x[name]] for x in each] for name in each[0]}
        return {
            name: np.array([expansions.line_r2(layers) for layers in of])
            for name, of in {**named, "all": [list(x.values()) for x in each]}.items()
        }

    def measure() -> tuple[None, dict[str, np.ndarray]]:
        mesh = make_mesh(config.mesh)
        drawn = pupils.fresh(expansions.network(config.ancestor), config.repetitions)
        of = {"trained": found["ordinary"].weights(), "drawn": drawn}
        params = {name: launch_stages.materialise(x, mesh) for name, x in of.items()}
        params["trained"] = params["trained"]["model"]
        return None, {
            f"{name}/{kernel}": values
            for name, x in params.items()
            for kernel, values in measured(x).items()
        }

    return Compute(measure)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    genes = {kind: genes.init for kind, genes in genes_of(config).items()}
    sizes = {depth: expansions.deep(config.ancestor, depth) for depth in config.depths}
    stored = learngene_report.Stored(
        {kind: expansions.size(init) for kind, init in genes.items()},
        {depth: expansions.size(expansions.network(x).init) for depth, x in sizes.items()},
    )
    return learngene_report.results(config.starts, stored, config.ancestor.depth, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
