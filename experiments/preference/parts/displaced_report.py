"""Claims, tables and plots of likelihood_displacement."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preference.parts.displaced_stages import SCORES
from experiments.preference.parts.displaced_toy import COSINES
from experiments.preference.parts.refusals import ANSWERS
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.effects import over_seeds, shown

SOURCE = "arXiv 2410.08847"
LABELS = {
    "ches_normalised": "CHES, length-normalised",
    "ches": "CHES",
    "edit_similarity": "edit similarity",
    "last_state_cosine": "cosine of last states",
}
ARMS = {"lowest": "lowest CHES", "random": "at random"}
CHOSEN, REJECTED, THIRD = (text.strip() for text in ANSWERS)


def _of(name: str, less: str | None = None) -> Callable[[Results], Effect | None]:
    """A measure over seeds, less another one's seed by seed."""

    def read(results: Results) -> Effect | None:
        values = np.asarray(results.values[name])
        if less is not None:
            values = values - np.asarray(results.values[less])
        return over_seeds(values) if len(values) > 1 else None

    return read


_NO_FALL = (
    "12 supervised steps make No the likeliest answer (0.29), and DPO lifts it; without them, on a "
    "tuning seed, the same. After 40 of them, on a tuning seed, No falls from 0.96 to 0.73, but so "
    "does Yes."
)
_NOT_TOLD = (
    "A first run (seeds 10 to 12; 12 supervised steps, 4 steps on each of 24 pairs): no chosen "
    "answer fell, Spearman 0.00 [-0.72, 0.72]. On tuning seed 0, 40 supervised steps and 10 on a "
    "pair gave -0.49, and were taken for this run, in which few chosen answers fall (8 %). Larger "
    "models, full training and answers that the model wrote itself were not tried."
)

CLAIMS = (
    Claim(
        f"Preferring {CHOSEN} to {REJECTED} makes {THIRD} likelier, on other questions (change of "
        "its log-probability, above 0).",
        SOURCE + ", section 1 and Table 1 (figures UNVERIFIED)",
        "sharply",
        _of("third_change"),
        above(0.0),
    ),
    Claim(
        f"The chosen word {CHOSEN} itself becomes less likely (change, below 0).",
        SOURCE + ", Table 1 (figures UNVERIFIED)",
        "the preferred token's probability falls",
        _of("chosen_change"),
        below(0.0),
        _NO_FALL,
    ),
    Claim(
        f"Tokens gain as their rows of the unembedding point along {CHOSEN} less {REJECTED} "
        "(Spearman over the 1000 likeliest tokens, above 0).",
        SOURCE + ", Theorem 2 (number UNVERIFIED)",
        "mass goes where <W_z, W_chosen - W_rejected> is large",
        _of("follows"),
        above(0.0),
    ),
    Claim(
        "The higher a pair's length-normalised CHES, the more its chosen answer falls when the "
        "pair is learnt alone (Spearman with the change a token, below 0).",
        SOURCE + ", section 5 (figures UNVERIFIED)",
        "CHES ranks subsets by displacement",
        _of("spearman_ches_normalised"),
        below(0.0),
        _NOT_TOLD,
    ),
    Claim(
        "CHES tells it better than edit similarity (difference of Spearman, below 0).",
        SOURCE + ", section 5 (figures UNVERIFIED)",
        "edit distance does not rank them",
        _of("spearman_ches_normalised", "spearman_edit_similarity"),
        below(0.0),
        _NOT_TOLD,
    ),
    Claim(
        "CHES tells it better than the cosine of last states (difference of Spearman, below 0).",
        SOURCE + ", section 5 (figures UNVERIFIED)",
        "similarity of last hidden states does not rank them",
        _of("spearman_ches_normalised", "spearman_last_state_cosine"),
        below(0.0),
        _NOT_TOLD,
    ),
    Claim(
        "Learning the half of pairs with the lowest CHES keeps the chosen answers likelier than "
        "learning as many at random (difference of changes a token, above 0).",
        SOURCE + ", section 6 (figures UNVERIFIED)",
        "filtering removes displacement",
        _of("lowest_chosen", "random_chosen"),
        above(0.0),
        _NOT_TOLD,
    ),
    Claim(
        "It favours refusals over compliance after other questions more than pairs at random do "
        "(difference of margins a token, above 0).",
        SOURCE + ", section 6 (figures UNVERIFIED)",
        "refusals 74.4 % before, 33.4 % after DPO; largely kept by filtering",
        _of("lowest_margin", "random_margin"),
        above(0.0),
        _NOT_TOLD,
    ),
    Claim(
        "With one hidden state, chosen falls where the two tokens' rows are alike: its change at "
        "cosine 0.99 less that at -0.9 is below 0.",
        SOURCE + ", Theorem 1 (number UNVERIFIED)",
        "driven by the inner product of unembeddings",
        _of("toy_change_alike", "toy_change_apart"),
        below(0.0),
    ),
    Claim(
        "And a third token gains most more often (difference of shares, above 0).",
        SOURCE + ", Theorem 2 (number UNVERIFIED)",
        "not compared",
        _of("toy_third_alike", "toy_third_apart"),
        above(0.0),
    ),
)


def results(
    toy: Any, *, word: Sequence[Any], pairs: Sequence[Any], kept: Sequence[Any], folder: Path
) -> Results:
    """toy: the panel's artefact; the rest hold an artefact for each seed."""
    values: dict[str, Any] = {
        f"{who}_change": [float(made.rows["changes"][i]) for made in word]
        for i, who in enumerate(("chosen", "rejected", "third"))
    }
    values["follows"] = [made.values["follows"] for made in word]
    values["winners"] = [made.values["winners"] for made in word]
    values["falling"] = [made.values["falling"] for made in pairs]
    for name in SCORES:
        values[f"spearman_{name}"] = [made.values[f"spearman_{name}"] for made in pairs]
    for arm in ARMS:
        for what in ("chosen", "rejected", "refusals", "compliances"):
            values[f"{arm}_{what}"] = [made.values[f"{arm}_{what}"] for made in kept]
        both = zip(values[f"{arm}_refusals"], values[f"{arm}_compliances"], strict=True)
        values[f"{arm}_margin"] = [refused - complied for refused, complied in both]
    for measure in ("toy_change", "toy_third"):
        values[f"{measure}_apart"] = toy.rows[measure][0].tolist()
        values[f"{measure}_alike"] = toy.rows[measure][-1].tolist()
    seeds = f"{len(word)} seeds"
    return Results(
        values, _tables(values, toy, word, seeds), _plots(toy, word, pairs, folder, seeds)
    )


def _tables(values: Any, toy: Any, word: Sequence[Any], seeds: str) -> list[Table]:
    words = [
        {
            "word": text.strip(),
            "probability before": _mean([made.rows["before"][i] for made in word]),
            "after": _mean([made.rows["after"][i] for made in word]),
            "change of log p": _mean([made.rows["changes"][i] for made in word]),
        }
        for i, text in enumerate(ANSWERS)
    ]
    correlations = [
        {"score": LABELS[name], "Spearman with chosen's change": _mean(values[f"spearman_{name}"])}
        for name in LABELS
    ]
    kept = [
        {"pairs learnt": label}
        | {
            f"change of log p a token: {what}": _mean(values[f"{arm}_{what}"])
            for what in ("chosen", "rejected", "refusals", "compliances")
        }
        for arm, label in ARMS.items()
    ]
    panel = [
        {
            "cosine of unembeddings": cosine,
            "change of log p of chosen": _mean(toy.rows["toy_change"][i]),
            "a third token gains most": _mean(toy.rows["toy_third"][i]),
        }
        for i, cosine in enumerate(COSINES)
    ]
    return [
        Table(f"{CHOSEN} preferred to {REJECTED}: other questions ({seeds})", words),
        Table(f"What tells of displacement ({seeds})", correlations),
        Table(f"Half of the pairs, learnt together ({seeds})", kept),
        Table(f"One hidden state ({toy.rows['toy_change'].shape[1]} draws)", panel),
    ]


def _plots(
    toy: Any, word: Sequence[Any], pairs: Sequence[Any], folder: Path, seeds: str
) -> dict[str, Path]:
    drawn = folder / "plots"
    probabilities = {
        text.strip(): {
            when: over_seeds([made.rows[when][i] for made in word]) for when in ("before", "after")
        }
        for i, text in enumerate(ANSWERS)
    }
    effects = [over_seeds(x) for x in toy.rows["toy_change"]]
    panel = plots.Line(COSINES, *map(list, zip(*effects, strict=True)))
    return {
        "words": plots.bars(
            drawn / "words.png",
            probabilities,
            y="probability after other questions",
            title=f"Learning {CHOSEN} rather than {REJECTED} ({seeds})",
        ),
        "scores": plots.bars(
            drawn / "scores.png",
            {
                LABELS[name].replace(", ", ",\n").replace(" of ", "\nof "): {
                    "Spearman with chosen's change": over_seeds(
                        [made.values[f"spearman_{name}"] for made in pairs]
                    )
                }
                for name in LABELS
            },
            y="Spearman",
            title=f"Which pairs displace: below 0 is told ({seeds})",
        ),
        "toy": plots.lines(
            drawn / "toy.png",
            {"chosen": panel},
            x="cosine of the two tokens' unembeddings",
            y="change of log p of chosen",
            title="One hidden state, ten tokens",
            reference=("no change", 0.0),
        ),
    }


def _mean(values: Any) -> Any:
    return shown(over_seeds(values))
