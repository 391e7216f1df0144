"""Four requests to forget, one after another: what stays forgotten, and what is left of the rest.

Papers: Shi et al. 2024 (MUSE, arXiv 2407.06460) ask methods to be sustainable; Gao et al. 2024 (O3,
arXiv 2407.10223) say that requests disturb one another. A language model learns authors and is then
asked to forget some of them in parts. Each request starts from the model that the one before it
left, and knows nothing of those to come; NPO's reference is the model that it starts from.

Claim: utility falls from request to request, with GradDiff more than with NPO+RT, and what was
forgotten first comes back a little. At `laptop` GradDiff falls and ends below NPO+RT, but nothing
comes back: every further request makes the earlier answers less probable.

    python -m experiments.unlearning.sequential_requests smoke     # generated authors: 20 s
    python -m experiments.unlearning.sequential_requests laptop    # real TOFU, a small LM, 3 seeds
    python -m experiments.unlearning.sequential_requests laptop --model smollm2 --adapter.rank 16

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder). Every request is kept: a
run that was stopped goes on with the request it was in. The model retrained without any of the
requests is what the end of a stream is compared with.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.unlearning.common import lm, measuring, qa, runs
from experiments.unlearning.common.compared import Compared
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS, Name
from experiments.unlearning.parts import requests_report
from kd_jax.data import sources
from kd_jax.launch import requests, run
from kd_jax.launch.claims import Results
from kd_jax.launch.stages import Stage, Training

CLAIMS = requests_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Compared):
    requests: int = 4
    """The questions to forget come in so many equal parts."""

    def __post_init__(self):
        super().__post_init__()
        if self.requests < 2:
            raise ValueError(f"requests: got {self.requests}, takes at least 2")
        count = qa.sizes(self.data)[0]
        if count % self.requests:
            raise ValueError(
                f"requests: got {self.requests}, takes divisors of the {count} questions to forget"
            )

    @property
    def asked(self) -> tuple[slice, ...]:
        """The questions of each request, as places in what is to be forgotten."""
        size = qa.sizes(self.data)[0] // self.requests
        return tuple(slice(i * size, (i + 1) * size) for i in range(self.requests))


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=2, retain_authors=2, length=64),
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=4, batch_size=16),
        methods=("npo_rt",),
        requests=2,
        evaluations=2,
        evaluate_retain=20,
        wrong_answers=0,
    ),
    "laptop": Config(
        decoder=dataclasses.replace(lm.TINY, width=128, depth=2, kv_heads=4, head_dim=32),
        data=qa.Data(tofu=True, forget_authors=4, retain_authors=8, length=88),
        finetune=Learning(rate=3e-3, epochs=20, batch_size=16),
        unlearn=Learning(rate=5e-4, epochs=10, batch_size=10, warmup=0.2),
        methods=("graddiff", "npo_rt", "simnpo"),
        evaluations=4,
        wrong_answers=0,
        score_batch=40,
        seeds=3,
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        language = runs.language(config, seed)
        found += [
            runs.finetune(config, language, seed),
            runs.score(config, language, seed, "finetune"),
        ]
        for method in config.methods:
            names = [f"{method}_{i + 1}_{seed}" for i in range(config.requests)]
            asked = functools.partial(_request, config.of(method), language, seed, method)
            found += requests.stream(f"finetune_{seed}", names, asked)
        found += [
            runs.retrain(config, language, seed),
            runs.score(config, language, seed, "retrain"),
        ]
    return tuple(found)


def _request(
    config: Config, language: lm.Language, seed: int, method: Name, request: requests.Request
) -> Sequence[Stage]:
    """One request: the reference's log-probabilities, the forgetting, and its score."""
    part, made = config.asked[request.number], METHODS[method]
    chosen = {"part": [part.start, part.stop]}
    stored = f"{request.result}_reference"

    def records(questions: qa.Questions) -> runs.Records:
        return questions.forget[part]

    def build(found: Mapping[str, Any]) -> Training:
        @functools.cache
        def source() -> sources.Source:
            questions = qa.load(config.data)
            only = questions._replace(forget=records(questions))
            reference, start = found[stored], found[request.start]
            return runs.forget_source(config, language, seed, made.parts, only, reference, start)

        return runs.training(
            config,
            language,
            seed,
            start=found[request.start].weights(),
            objective=made.objective,
            learning=config.unlearn,
            count=part.stop - part.start,
            source=source,
            parts=made.parts,
            reads_reference=made.reference,
        )

    depends = runs.unlearnt_from(config, seed) | {"method": method} | chosen
    return (
        measuring.reference(config, language, seed, stored, request.start, records, chosen),
        Stage(request.result, build, (request.start, stored), depends),
        runs.score(config, language, seed, request.result.removesuffix(f"_{seed}")),
    )


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {name: METHODS[name].label for name in config.methods}
    return requests_report.results(labels, config.asked, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
