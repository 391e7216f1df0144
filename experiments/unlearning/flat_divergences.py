"""FLAT by four f-divergences against gradient ascent and NPO, with the answers to forget alone.

Paper: Wang et al. 2024, LLM unlearning via loss adjustment with only forget data (FLAT, arXiv
2410.11143).
FLAT makes refusals likelier and the answers to forget less likely, weighed by an f-divergence
between the two; it sees no data to keep and no reference model. GA and NPO are run without a retain
term too, so that nobody is told what to keep.

Methods forget at different speeds, and whoever stops first has lost least. So they are compared at
equal forgetting: where the probability of the answers to forget has first fallen by a given share
along the training, how much is left of that of the answers to keep?

Claim: at half the probability of the answers to forget, FLAT has kept more than GA and than NPO.

    python -m experiments.unlearning.flat_divergences smoke     # generated authors: 20 s
    python -m experiments.unlearning.flat_divergences laptop    # real TOFU, a small LM, 3 seeds
    python -m experiments.unlearning.flat_divergences laptop --model smollm2 --adapter.rank 16

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder). A small model from
scratch has few answers besides those it was taught: what it keeps is only what is near.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.unlearning.common import lm, qa, runs
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS as ALL
from experiments.unlearning.common.methods import Method, Setting
from experiments.unlearning.parts import flat_report
from kd_jax.launch import run
from kd_jax.launch.config import check_distinct
from kd_jax.launch.stages import Stage
from kd_jax.losses import f_divergences
from kd_jax.losses.f_divergences import FDivergence
from kd_jax.objectives.unlearn.divergence import flat
from kd_jax.types import Objective

CLAIMS = flat_report.CLAIMS


def _objective(divergence: FDivergence, s: Setting) -> Objective:
    return flat(s.model, divergence=divergence, policy=s.policy)


def _flat(label: str, divergence: FDivergence) -> Method:
    objective = functools.partial(_objective, divergence)
    return Method(f"FLAT, {label}", "flat", objective, ("forget", "refusal"))


Name = Literal["flat_tv", "flat_js", "flat_pearson", "flat_kl", "ga", "npo"]
METHODS: dict[Name, Method] = {
    "flat_tv": _flat("total variation", f_divergences.TOTAL_VARIATION),
    "flat_js": _flat("Jensen-Shannon", f_divergences.JENSEN_SHANNON),
    "flat_pearson": _flat("Pearson", f_divergences.PEARSON),
    "flat_kl": _flat("KL", f_divergences.KL),
    "ga": ALL["ga"],
    "npo": ALL["npo"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    methods: tuple[Name, ...] = tuple(METHODS)
    """What is compared; a claim about others is not tested."""
    drops: tuple[float, ...] = (0.5, 0.25, 0.75)
    """Shares by which the probability of the answers to forget has fallen where methods are
    compared; the claims are about the first."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")
        if not self.drops or not all(0 < drop < 1 for drop in self.drops):
            said = " ".join(map(str, self.drops)) or "none"
            raise ValueError(f"drops: got {said}, takes numbers between 0 and 1")


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=1, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=16, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=8, batch_size=16),
        methods=("flat_js", "ga"),
        evaluations=4,
        evaluate_retain=20,
        wrong_answers=0,
        score_batch=16,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(
            lm.TINY, width=128, depth=2, heads=4, kv_heads=4, head_dim=32, mlp=256
        ),
        data=qa.Data(tofu=True, forget_authors=2, retain_authors=8, length=96),
        finetune=Learning(rate=3e-3, epochs=20, batch_size=16),
        # A low rate and many measurements: where a level is crossed is read between two of them.
        unlearn=Learning(rate=2e-4, epochs=8, batch_size=8, warmup=0.2),
        evaluations=20,
        wrong_answers=0,
        score_batch=40,
        seeds=3,
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return runs.standard(config, {name: METHODS[name] for name in config.methods})


def report(config: Config, artefacts: Mapping[str, Any], folder: Path):
    labels = {name: METHODS[name].label for name in config.methods}
    return flat_report.results(labels, config.drops, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
