"""PortLLM: a model is updated, and the low-rank patch of its predecessor is put on it untrained.

Paper: arXiv 2410.10870. A character language model learns the first half of a text; a LoRA patch on
it learns a task: the same text with large letters for small ones and small for large. The model is
then updated: its pretraining goes on, on the second half of the text, in legs of equal length.
After each leg the updated model is measured at the task by itself, with the old patch, and with a
new patch trained on it as the old one was: the mean negative log-likelihood of a character of
held-out text of the task.

Claim: the old patch gives the updated model most of what a new one does, until it drifted far.

    python -m experiments.merging.portllm_drift smoke     # generated text, two legs: 15 s
    python -m experiments.merging.portllm_drift laptop    # tiny Shakespeare, three seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distillation.common import text as text_lib
from experiments.distillation.common.config import SMALL
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text
from experiments.merging.lm import ciphers, learners, port_report
from experiments.unlearning.common import lm
from kd_jax.launch import run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.merging.arithmetic import inner_product, task_vector
from kd_jax.merging.patches import port, residual_ratio
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig

CLAIMS = port_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    text: Text
    model: DecoderConfig
    pretrain: Learning
    """Learning the first half of the text."""
    update: Learning
    """One leg of learning the second half; its rate rises and falls again."""
    legs: int = 3
    """How often the model is updated and measured."""
    patch: Learning
    """How a patch learns the task."""
    adapter: lm.Adapter = lm.Adapter(rank=8)
    score_batch: int = 64
    """Rows measured at once."""
    seeds: int = 3
    """Repetitions of everything, pretraining included."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "legs", "score_batch", "seeds")
        if self.adapter.rank < 1:
            raise ValueError(f"adapter.rank: got {self.adapter.rank}, takes at least 1")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


PRESETS = {
    "smoke": Config(
        text=Text(length=24, held_out=32),
        model=SMALL,
        # One step for both: it compiles once.
        pretrain=Learning(rate=1e-2, steps=20),
        update=Learning(rate=1e-2, steps=20),
        legs=2,
        patch=Learning(rate=1e-2, steps=15),
        seeds=2,
    ),
    "laptop": Config(
        text=Text(shakespeare=True, length=32, held_out=128),
        model=dataclasses.replace(SMALL, width=64, depth=2, heads=4, kv_heads=4, mlp=192),
        pretrain=Learning(rate=3e-3, steps=1000),
        update=Learning(rate=3e-3, steps=200),
        patch=Learning(rate=5e-3, steps=300),
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    """For each seed: updated_0 (the first model) and its patch, then each leg's; and ported."""
    found = []
    for seed in config.repetitions:
        shared = learners.shared(config, seed)
        again = {"update": config.update, "seed": seed}
        learnt = {"patch": config.patch, "adapter": config.adapter, "seed": seed}
        models = [f"updated_{leg}_{seed}" for leg in range(config.legs + 1)]
        patches = [f"patch_{leg}_{seed}" for leg in range(config.legs + 1)]
        found.append(Stage(models[0], functools.partial(_first, config, seed), (), shared))
        for before, model in zip(models, models[1:], strict=False):
            build = functools.partial(_updated, config, seed, before)
            found.append(Stage(model, build, (before,), again))
        for model, patch in zip(models, patches, strict=True):
            build = functools.partial(_patch, config, seed, model)
            found.append(Stage(patch, build, (model,), learnt))
        build = functools.partial(_measured, config, models, patches)
        found.append(Stage(f"ported_{seed}", build, (*models, *patches), {}))
    return tuple(found)


def _first(config: Config, seed: int, found: Any) -> Training:
    return learners.training(config, config.pretrain, seed, lambda: _half(config, 0))


def _updated(config: Config, seed: int, before: str, found: Mapping[str, Artefact]) -> Training:
    start = found[before].weights()
    return learners.training(config, config.update, seed, lambda: _half(config, 1), start)


def _half(config: Config, half: int) -> dict[str, Any]:
    """The first or the second half of the text."""
    return text_lib.rows(np.array_split(text_lib.load(config.text).train, 2)[half])


def _patch(config: Config, seed: int, model: str, found: Mapping[str, Artefact]) -> Training:
    def rows() -> dict[str, Any]:
        return ciphers.enciphered(_half(config, 0), ciphers.OTHER_CASE)

    start = found[model].weights()
    return learners.patching(config, config.patch, config.adapter, seed, rows, start)


def _measured(
    config: Config, models: list[str], patches: list[str], found: Mapping[str, Artefact]
) -> Compute:
    """Rows [legs + 1]: "updated", "ported" and "new" in nats, "drift" and "residue"."""

    def measure() -> tuple[None, Mapping[str, Any]]:
        mesh, rules = make_mesh(config.mesh), decoder.rules(config.model)
        held_out = text_lib.rows(text_lib.load(config.text).held_out)
        task = ciphers.enciphered(held_out, ciphers.OTHER_CASE)
        nll = functools.partial(
            learners.nll, config.model, batch=task, mesh=mesh, rows=config.score_batch
        )
        scale = config.adapter.alpha / config.adapter.rank
        first = materialise(found[models[0]].weights(), mesh, rules)
        old = materialise(found[patches[0]].weights(), mesh)
        rows: dict[str, list[float]] = {name: [] for name in port_report.ROWS}
        for model, patch in zip(models, patches, strict=True):
            updated = materialise(found[model].weights(), mesh, rules)
            ported = _port(updated, old, scale)
            new = _port(updated, materialise(found[patch].weights(), mesh), scale)
            rows["updated"].append(nll(updated))
            rows["ported"].append(nll(ported))
            rows["new"].append(nll(new))
            rows["drift"].append(float(_drift(updated, first)))
            rows["residue"].append(float(_residue(new, ported, updated)))
        return None, {name: np.asarray(x) for name, x in rows.items()}

    return Compute(measure)


@jax.jit
def _drift(model: Any, first: Any) -> jax.Array:
    """||theta' - theta||_F / ||theta||_F."""
    moved = task_vector(first, model)
    return (inner_product(moved, moved) / inner_product(first, first)) ** 0.5


_port = jax.jit(lambda base, patch, scale: port(base, patch, scale=scale))
_residue = jax.jit(residual_ratio)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = [artefacts[f"ported_{seed}"] for seed in config.repetitions]
    return port_report.results(config.update.steps, found, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
