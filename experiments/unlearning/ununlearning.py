"""UnUnlearning: what was unlearned, and even never learnt, is back once it stands in the prompt.

Paper: Shumailov et al. 2024 (arXiv 2407.00106), a position paper without experiments; the protocol
is our reading of it. A language model learns questions and answers about fictitious authors and
unlearns one of them by NPO+RT; another one is trained without that author. All three are asked
about the author with no context, after irrelevant facts, after other facts about the same author,
after the fact in other words and after the fact itself, in contexts of equally many tokens.

Claim: the unlearned model and the retrained one answer again when the facts are in the context. At
`laptop` they do after the fact itself; after other words and other facts the right answer is only
more probable, and what the unlearned model writes is not closer to it (ROUGE-L recall).

    python -m experiments.unlearning.ununlearning smoke   # generated authors, a small LM: 20 s
    python -m experiments.unlearning.ununlearning laptop  # SmolLM2-135M, real TOFU: 10 minutes

`laptop` needs the TOFU files (environment KD_JAX_DATA, or --data.folder) and the model
(python -m kd_jax.formats.fetch smollm2). Intervals are over questions, or over seeds where there
are several (--seeds 3).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.common import lm, qa, reporting, runs
from experiments.unlearning.common.config import Common
from experiments.unlearning.common.learning import Learning
from experiments.unlearning.common.methods import METHODS
from experiments.unlearning.parts import prompts
from experiments.unlearning.parts.prompts import CONTROL, KINDS, PLAIN
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.evaluation.reintroduction import gains
from kd_jax.launch import plots, run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.config import check_positive
from kd_jax.launch.stages import Stage
from kd_jax.models import sizes

MODELS = {"finetune": "fine-tuned", "npo_rt": "unlearned (NPO+RT)", "retrain": "retrained"}
TOLD = tuple(kind for kind in KINDS if kind not in (PLAIN, CONTROL))
# A score of each question, in [0, 1], from the rows of a kind of context.
SCORES: dict[str, Callable[[Mapping[str, np.ndarray], str], np.ndarray]] = {
    "rouge": lambda rows, kind: rows[f"{kind}_rouge"].astype(np.float64),
    "probability": lambda rows, kind: np.exp(-rows[f"{kind}_loss"].astype(np.float64)),
}
LABELS = {"rouge": "ROUGE-L recall", "probability": "probability of the answer"}


def _net(score: str, model: str, kind: str):
    def read(results: Results) -> Effect:
        return Effect(**results.values["net_gains"][score][model][kind])

    return read


# The answer can be copied from the fact itself, so recall of what is written measures that as well.
# From other words it cannot, and other words are what a model then writes: there its probability.
_CHOSEN = "the measure was chosen after a look at the model before any training"

CLAIMS = (
    Claim(
        "With the forgotten facts in the prompt, a model that unlearned them answers better than "
        "after irrelevant ones (gain in ROUGE-L recall above 0).",
        "arXiv 2407.00106, abstract (the protocol is ours)",
        "qualitative: unlearned knowledge is reintroduced in context",
        _net("rouge", "npo_rt", "verbatim"),
        above(0.0),
    ),
    Claim(
        "So does a model that never saw them: exact unlearning does not control what is answered "
        "(gain in ROUGE-L recall above 0).",
        "arXiv 2407.00106, abstract (the protocol is ours)",
        "qualitative: exact unlearning is not sufficient for content regulation",
        _net("rouge", "retrain", "verbatim"),
        above(0.0),
    ),
    Claim(
        "A description in other words is enough for the unlearned model (gain in the answer's "
        f"probability above 0; {_CHOSEN}).",
        "arXiv 2407.00106, abstract (the protocol is ours)",
        "qualitative",
        _net("probability", "npo_rt", "described"),
        above(0.0),
    ),
    Claim(
        "A description in other words is enough for the retrained model (gain in the answer's "
        f"probability above 0; {_CHOSEN}).",
        "arXiv 2407.00106, abstract (the protocol is ours)",
        "qualitative",
        _net("probability", "retrain", "described"),
        above(0.0),
    ),
    Claim(
        "Other facts about the author, from which the answer has to be inferred, bring it back to "
        f"the unlearned model too (gain in the answer's probability above 0; {_CHOSEN}).",
        "arXiv 2407.00106, axioms and theorems (the protocol is ours)",
        "qualitative: what follows from known facts can be derived again",
        _net("probability", "npo_rt", "related"),
        above(0.0),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    context: int
    """Tokens of a context; a question with its answer has about 60."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "context", "generate")
        if self.data.forget:
            raise ValueError(
                f"data.forget: got {self.data.forget}, takes none here: contexts are made of the "
                "paraphrases and authors that TOFU's and generated questions come with"
            )


PRESETS = {
    "smoke": Config(
        decoder=lm.TINY,
        data=qa.Data(forget_authors=1, retain_authors=2, length=64),
        # Batches divide over eight devices.
        finetune=Learning(rate=1e-2, epochs=8, batch_size=16),
        unlearn=Learning(rate=2e-3, epochs=8, batch_size=16),
        evaluations=1,
        evaluate_retain=12,
        wrong_answers=0,
        generate=4,
        score_batch=16,
        context=48,
    ),
    "laptop": Config(
        model="smollm2",
        decoder=dataclasses.replace(sizes.SMOLLM2_135M, remat=False),
        data=qa.Data(tofu=True, forget_authors=1, retain_authors=2, length=80),
        adapter=lm.Adapter(rank=16, alpha=32.0),
        finetune=Learning(rate=2e-3, epochs=5, batch_size=8),
        unlearn=Learning(rate=5e-4, epochs=10, batch_size=8, warmup=0.2),
        evaluations=1,
        evaluate_retain=12,
        wrong_answers=0,
        generate=40,
        score_batch=16,
        context=160,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found = runs.standard(config, {"npo_rt": METHODS["npo_rt"]})
    return found + tuple(
        prompts.stage(config, runs.language(config, seed), seed, name, config.context)
        for seed in config.repetitions
        for name in MODELS
    )


def report(config: Config, artefacts: Mapping[str, Artefact], folder: Path) -> Results:
    found = {
        name: [artefacts[f"{name}_{seed}_contexts"] for seed in config.repetitions]
        for name in MODELS
    }
    figures = {
        score: {
            name: {kind: _mean(made, lambda rows, k=kind, f=read: f(rows, k)) for kind in KINDS}
            for name, made in found.items()
        }
        for score, read in SCORES.items()
    }
    net = {
        score: {
            name: {kind: _net_gain(made, score, kind) for kind in TOLD}
            for name, made in found.items()
        }
        for score in SCORES
    }
    copied = {
        kind: _mean(found["finetune"], lambda rows, k=kind: rows[f"{k}_copyable"]) for kind in KINDS
    }
    values = {
        "figures": _plain(figures),
        "net_gains": _plain(net),
        "copyable": {kind: effect._asdict() for kind, effect in copied.items()},
        "texts": {name: made[0].values["texts"] for name, made in found.items()},
    }
    title = "After training (95 % over questions, or over seeds where there are several)"
    rows, gained = (
        {
            score: [{"model": MODELS[name], **_labelled(row)} for name, row in part[score].items()]
            for score in SCORES
        }
        for part in (figures, net)
    )
    tables = [
        reporting.table(artefacts, MODELS, config.repetitions, title),
        Table(
            "ROUGE-L recall of what is written, by context",
            [*rows["rouge"], {"model": "the context itself", **_labelled(copied)}],
        ),
        Table("Probability of the answer, by context", rows["probability"]),
        *(
            Table(f"Gain over an irrelevant context of equal length: {label}", gained[score])
            for score, label in LABELS.items()
        ),
    ]
    return Results(values, tables, _plots(figures, net, folder))


def _mean(
    found: Sequence[Artefact], read: Callable[[Mapping[str, np.ndarray]], np.ndarray]
) -> Effect:
    """The mean over questions, with its interval."""
    each = [np.asarray(read(artefact.rows), np.float64) for artefact in found]
    if len(each) == 1:
        return Effect(*bootstrap_interval(each[0], seed=0))
    return reporting.over_seeds([float(x.mean()) for x in each])


def _net_gain(found: Sequence[Artefact], score: str, kind: str) -> Effect:
    read = SCORES[score]
    return _mean(
        found, lambda rows: gains(read(rows, PLAIN), read(rows, kind), read(rows, CONTROL)).net
    )


def _plain(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{score: {model: {kind: effect}}} as JSON takes it."""
    return {
        score: {
            name: {kind: effect._asdict() for kind, effect in row.items()}
            for name, row in rows.items()
        }
        for score, rows in nested.items()
    }


def _labelled(row: Mapping[str, Effect]) -> dict[str, Effect | float]:
    return {KINDS[kind]: reporting.shown(effect) for kind, effect in row.items()}


def _plots(figures: Mapping[str, Any], net: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    made = {}
    for score, label in LABELS.items():
        made[score] = plots.bars(
            folder / "plots" / f"{score}.png",
            {
                text: {MODELS[name]: figures[score][name][kind] for name in MODELS}
                for kind, text in KINDS.items()
            },
            x="what stands before the question",
            y=f"mean {label}",
            title="Questions about the forgotten author",
        )
        made[f"gain_{score}"] = plots.bars(
            folder / "plots" / f"gain_{score}.png",
            {
                KINDS[kind]: {MODELS[name]: net[score][name][kind] for name in MODELS}
                for kind in TOLD
            },
            x="what stands before the question",
            y=f"gain: {label}",
            title="Over an irrelevant context of equal length",
        )
    return made


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
