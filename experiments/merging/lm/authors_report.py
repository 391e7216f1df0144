"""Claims, tables and plots of smollm_merge."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.merging.lm.authors import HELD_OUT
from kd_jax.evaluation.intervals import bootstrap_interval
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

OWN = "own model"  # of each question, the model that learned its group
OTHERS = "models of the other groups"  # of each question, the mean over these


def over_questions(values: Sequence[float] | np.ndarray) -> Effect:
    """The mean with its bootstrap interval: it covers the choice of questions, not of seeds."""
    return Effect(*bootstrap_interval(np.asarray(values), seed=0))


def _more(ours: str, theirs: str) -> Callable[[Results], Effect | None]:
    """The probability of learned answers under one model less that under another, paired."""

    def read(results: Results) -> Effect | None:
        learned = results.values["learned"]
        if ours not in learned or theirs not in learned:
            return None
        return over_questions(np.subtract(learned[ours], learned[theirs]))

    return read


CLAIMS = (
    Claim(
        "Averaging interferes: an answer is less probable under the mean of the models than under "
        "the model that learned it (difference in probability, paired over questions).",
        "arXiv 2306.01708, Figure 1 and Table 1",
        "no merge reaches the fine-tuned models (UNVERIFIED)",
        _more(OWN, "average"),
        above(0.0),
    ),
    Claim(
        "What was learned apart is in the mean all the same: an answer is more probable under it "
        "than under models that learned other authors (difference in probability).",
        "arXiv 2203.05482, 2212.04089",
        "merges work on all tasks at once",
        _more("average", OTHERS),
        above(0.0),
    ),
    Claim(
        "Task vectors of disjoint facts add up: their sum remembers more than the mean of the "
        "models (difference in probability).",
        "arXiv 2212.04089, section 4",
        "task vectors are close to orthogonal",
        _more("sum of task vectors", "average"),
        above(0.0),
        "The sum at a scale of 0.4 in the same run: 0.04 above the mean (0.57 against 0.53).",
    ),
    Claim(
        "TIES remembers more than averaging (difference in probability).",
        "arXiv 2306.01708, Table 1",
        "higher in every setting of the table",
        _more("TIES", "average"),
        above(0.0),
        "TIES is above the mean for the group that the mean remembers least, below for the others.",
    ),
)


def results(
    labels: Mapping[str, str],
    groups: Sequence[str],
    artefacts: Mapping[str, Artefact],
    folder: Path,
) -> Results:
    """values["learned"]: {model: the probability of each learned answer}; a table, two plots.

    labels: {stage: label} of what was measured; the model of a group is labelled "learned {group}".
    """
    rows = {label: artefacts[name].rows for name, label in labels.items()}
    learned = {label: np.concatenate([x[g] for g in groups]) for label, x in rows.items()}
    own = {group: rows[f"learned {group}"] for group in groups}
    learned[OWN] = np.concatenate([own[g][g] for g in groups])
    learned[OTHERS] = np.concatenate(
        [np.mean([own[other][g] for other in groups if other != g], 0) for g in groups]
    )
    held_out = {label: x[HELD_OUT] for label, x in rows.items()}
    table = [
        {"model": label, "learned answers": over_questions(learned[label])}
        | {group: float(rows[label][group].mean()) for group in groups if label in rows}
        | ({HELD_OUT: float(held_out[label].mean())} if label in rows else {})
        for label in (*rows, OWN, OTHERS)
    ]
    cells = {
        label: {g: 100 * float(x[g].mean()) for g in (*groups, HELD_OUT)}
        for label, x in rows.items()
    }
    made = {
        "remembered": plots.heatmap(
            folder / "plots" / "remembered.png",
            cells,
            x="authors",
            title="Probability of a token of the answers (%)",
            low=0.0,
            high=100.0,
        ),
        "learned": plots.ranking(
            folder / "plots" / "learned.png",
            {label: over_questions(learned[label]) for label in (OWN, *rows)},
            x="probability of a token of learned answers",
            title="All groups together (95 % over questions)",
            reference=(OTHERS, float(learned[OTHERS].mean())),
        ),
    }
    title = "Probability of a token of the answers (95 % over questions)"
    values = {
        name: {k: x.tolist() for k, x in part.items()}
        for name, part in (("learned", learned), ("held_out", held_out))
    }
    return Results(values, [Table(title, table)], made)
