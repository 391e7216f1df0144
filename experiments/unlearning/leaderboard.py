"""A leaderboard of unlearning methods under one protocol: how near to a retrained model each ends.

Papers: TOFU (arXiv 2401.06121), NPO (arXiv 2404.05868), SimNPO (arXiv 2410.07163), WGA (arXiv
2502.19301) and others. A language model learns questions and answers about authors and forgets some
of them by every method: from the same weights, on the same batches, for the same number of steps,
at each of a few learning rates. The rate that counts in one repetition is the one that is best in
the others, so that no method is judged where it was tuned.

Measured is the gap to a model retrained without the forgotten authors: the mean absolute difference
of probability, truth ratio, exact memorisation and extraction strength, on answers to forget and
to keep alike. A method that destroys the model is as far off as one that does nothing.

Claim: NPO+RT ends nearer to the retrained model than GA, GradDiff and refusals do.

    python -m experiments.unlearning.leaderboard smoke     # generated authors, two methods: 15 s
    python -m experiments.unlearning.leaderboard laptop    # real TOFU, a small LM: 20 minutes
    python -m experiments.unlearning.leaderboard laptop --model smollm2 --adapter.rank 16 \
        --methods graddiff npo_rt simnpo

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder). A small model from
scratch knows nothing but the authors: it shows how methods differ, not what they cost a real one.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.unlearning.common import lm, qa, runs
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS, Name
from experiments.unlearning.parts import leaderboard_report
from kd_jax.launch import run
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Stage

CLAIMS = leaderboard_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    methods: tuple[Name, ...]
    """What is ranked; the claims are about ga, graddiff, npo_rt, simnpo, wga and idk_rt."""
    rates: tuple[float, ...]
    """Each method is run at unlearn.rate times each of these."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "rates")
        check_distinct(self, "methods", "rates")


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=1, retain_authors=2, holdout_authors=1, length=64),
        finetune=Learning(rate=1e-2, epochs=16, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=4, batch_size=16),
        methods=("graddiff", "npo_rt"),
        rates=(1.0,),
        evaluations=1,
        evaluate_retain=20,
        wrong_answers=1,
        score_batch=16,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(
            lm.TINY, width=128, depth=2, heads=4, kv_heads=4, head_dim=32, mlp=256
        ),
        data=qa.Data(tofu=True, forget_authors=2, retain_authors=6, holdout_authors=2, length=72),
        finetune=Learning(rate=3e-3, epochs=20, batch_size=16),
        unlearn=Learning(rate=5e-4, epochs=8, batch_size=8, warmup=0.2),
        methods=(
            "ga",
            "graddiff",
            "wga",
            "npo_rt",
            "simnpo",
            "dpo_rt",
            "idk_rt",
            "idk_ap",
            "undial",
            "me_gd",
            "rmu",
        ),
        rates=(0.25, 1.0, 4.0, 16.0),
        evaluations=1,
        wrong_answers=3,
        score_batch=40,
        seeds=3,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        opened = runs.language(config, seed)
        found += [
            runs.finetune(config, opened, seed),
            runs.score(config, opened, seed, "finetune"),
            runs.retrain(config, opened, seed),
            runs.score(config, opened, seed, "retrain"),
            runs.reference(config, opened, seed),
        ]
        for method in config.methods:
            for i, rate in enumerate(config.rates):
                name = leaderboard_report.variant(method, i)
                learning = dataclasses.replace(config.unlearn, rate=config.unlearn.rate * rate)
                faster = dataclasses.replace(config, unlearn=learning)
                found += [
                    runs.forget(faster, opened, seed, name, METHODS[method]),
                    runs.score(config, opened, seed, name),
                ]
    return tuple(found)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path):
    labels = {name: METHODS[name].label for name in config.methods}
    return leaderboard_report.results(labels, config.rates, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
