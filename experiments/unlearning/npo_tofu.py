"""Negative preference optimisation on TOFU: from catastrophic collapse to effective unlearning.

Paper: Zhang, Lin, Bai, Mei 2024 (arXiv 2404.05868). A language model learns questions and answers
about fictitious authors and is then made to forget some of them: by gradient ascent (GA), NPO, and
by the family's other methods under the same protocol.

Claim: GA destroys what should be kept; NPO forgets more slowly and NPO+RT keeps the rest.

All methods share one learning rate and number of steps, which some are too slow for (SimNPO, SatImp
and the refusals have forgotten little when it is over): what a method can do at its own rate is
`leaderboard`'s question.

    python -m experiments.unlearning.npo_tofu smoke     # generated authors, a small LM: 20 s
    python -m experiments.unlearning.npo_tofu laptop    # SmolLM2-135M, real TOFU
    python -m experiments.unlearning.npo_tofu laptop --methods ga npo npo_rt
    python -m experiments.unlearning.npo_tofu laptop --model FOLDER \
        --data.forget my.jsonl --data.retain keep.jsonl # your own model and data

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder) and the model
(python -m kd_jax.formats.fetch smollm2). A finished method is kept: run them in groups, then all.

`paper` is planned, never run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.unlearning.common import lm, qa, runs
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS, Name
from experiments.unlearning.parts import tofu_report
from kd_jax.launch import run
from kd_jax.launch.config import check_distinct
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Stage
from kd_jax.models import sizes

CLAIMS = tofu_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    methods: tuple[Name, ...] = ("ga", "graddiff", "npo", "npo_rt")
    """What is compared; the claims are about ga, npo and npo_rt."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=1, retain_authors=2, holdout_authors=1, length=64),
        # Batches divide over eight devices.
        finetune=Learning(rate=1e-2, epochs=16, batch_size=16),
        unlearn=Learning(rate=1e-3, epochs=16, batch_size=16),
        evaluations=2,
        evaluate_retain=20,
        wrong_answers=2,
        generate=4,
        score_batch=16,
    ),
    "laptop": Config(
        model="smollm2",
        decoder=dataclasses.replace(sizes.SMOLLM2_135M, remat=False),
        data=qa.Data(tofu=True, forget_authors=2, retain_authors=6, holdout_authors=2, length=88),
        adapter=lm.Adapter(rank=16, alpha=32.0),
        finetune=Learning(rate=2e-3, epochs=5, batch_size=8),
        unlearn=Learning(rate=5e-4, epochs=6, batch_size=8, warmup=0.2),
        methods=tuple(METHODS),
        evaluations=3,
        evaluate_retain=24,
        wrong_answers=3,
        generate=32,
        general=12,
    ),
    # SmolLM2-135M on all of TOFU's forget05, which one card trains in minutes: not run yet.
    # forget01 is --data.forget-authors 2 --data.retain-authors 198.
    "gpu": Config(
        model="smollm2",
        decoder=dataclasses.replace(sizes.SMOLLM2_135M, dtype="bfloat16"),
        data=qa.Data(tofu=True, forget_authors=10, retain_authors=190, length=128),
        finetune=Learning(rate=1e-4, epochs=5, batch_size=32, warmup=0.2),
        unlearn=Learning(rate=1e-5, epochs=10, batch_size=32, weight_decay=0.01),
        methods=tuple(METHODS),
        evaluations=10,
        evaluate_retain=400,
        generate=200,
        general=100,
        score_batch=128,
        seeds=3,
    ),
    # Llama-2-7B on full TOFU, forget10; forget01 and forget05 are --data.forget-authors 2 (10)
    # --data.retain-authors 198 (190). The authors' AdamW 1e-5, decay .01, batch 32, 10 epochs of
    # unlearning; 5 epochs of fine-tuning are UNVERIFIED.
    "paper": Config(
        mesh=MeshConfig(data=1, fsdp=-1),
        model="Llama-2-7b-chat-hf",
        decoder=sizes.LLAMA2_7B,
        data=qa.Data(tofu=True, forget_authors=20, retain_authors=180, length=256),
        finetune=Learning(rate=1e-5, epochs=5, batch_size=32, warmup=0.2),
        unlearn=Learning(rate=1e-5, epochs=10, batch_size=32),
        evaluations=10,
        evaluate_retain=300,
        generate=200,
        general=100,
        score_batch=32,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return runs.standard(config, {name: METHODS[name] for name in config.methods})


def export(config: Config, artefacts: Mapping[str, Any], folder: Any) -> None:
    """The unlearned model as a Hugging Face folder, where model and data were the user's."""
    name = f"npo_rt_{config.seed}"
    if config.model and config.data.forget and name in artefacts:
        weights = artefacts[name].weights()
        language = runs.language(config, config.seed)
        lm.export(language, weights, make_mesh(config.mesh), folder / "npo_rt")


def report(config: Config, artefacts: Mapping[str, Any], folder: Any):
    methods = {name: METHODS[name] for name in config.methods}
    return tofu_report.results(methods, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
