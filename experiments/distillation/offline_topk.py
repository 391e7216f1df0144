"""A teacher that is not there: k stored log-probabilities a token, and what to do with the rest.

Papers: sequence-level knowledge distillation (Kim and Rush 2016, arXiv 1606.07947); what is done
with the mass that was not stored is from released trainers (TRL, DistillKit, tunix).
A character language model learns a text. Its k likeliest next characters at every position are
written to disk, and students learn from the file: with the rest as one more character, with both
sides cut to the k and made distributions again, or with the rest left out. Others learn from text
that the teacher wrote, and from as much of the real one. No student's training has the teacher in
memory; how far from it they ended is measured afterwards, on held-out text.

Claim: at small k the rest is needed, and a student of the teacher's text is nearer to the teacher
than one of as much real text.

    python -m experiments.distillation.offline_topk smoke     # generated text: 15 s
    python -m experiments.distillation.offline_topk laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from experiments.distillation.common import runs
from experiments.distillation.common.config import SMALL, STUDENT, TEACHER, Common
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text
from experiments.distillation.parts import offline_report, offline_stages
from experiments.distillation.parts.offline_stages import RuleName
from kd_jax.data.top_k_records import Layout
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Stage

CLAIMS = offline_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    kept: tuple[int, ...] = (1, 2, 4, 8, SMALL.vocab)
    """How many characters are stored at a position: k."""
    rules: tuple[RuleName, ...] = get_args(RuleName)
    """What is done with the rest."""
    bits: int = 8
    """Of a stored probability: 4 to 16."""
    samples: int = 3072
    """Rows that the teacher writes for students of its text."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "samples")
        check_distinct(self, "kept", "rules")
        for k in self.kept:
            Layout(k, self.teacher.vocab, self.bits).checked()


PRESETS = {
    "smoke": Config(
        text=Text(length=32, held_out=32),
        teacher=SMALL,
        student=dataclasses.replace(SMALL, width=16, mlp=32),
        learn_teacher=Learning(rate=1e-2, steps=60),
        learn=Learning(rate=1e-2, steps=30),
        kept=(2,),
        rules=("tail",),
        samples=64,
        seeds=1,
        evaluations=1,
        score_batch=32,
        prompt=8,
    ),
    "laptop": Config(
        text=Text(shakespeare=True, length=64, held_out=256),
        teacher=TEACHER,
        student=STUDENT,
        learn_teacher=Learning(rate=3e-3, steps=1200, batch_size=32),
        learn=Learning(rate=3e-3, steps=600, batch_size=16),
        evaluations=1,
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found = [runs.teacher(config)]
    found += [offline_stages.cache(config, k, config.bits) for k in config.kept]
    for seed in config.repetitions:
        found.append(offline_stages.written(config, seed, config.samples))
        for rule in config.rules:
            for k in config.kept:
                found += offline_stages.of_cache(config, rule, k, config.bits, seed)
        for name in offline_stages.TEXTS:
            found += offline_stages.of_text(config, name, seed, config.samples)
    return tuple(found)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return offline_report.results(
        config.rules, config.kept, config.repetitions, artefacts, folder, config.teacher.vocab
    )


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
