"""Claims, tables and plots of offline_topk."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.common.reporting import better, over_seeds, shown
from experiments.distillation.parts.offline_stages import RULES, TEXTS, RuleName
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below

MEASURES = {"forward": "KL(teacher || student)", "nll": "NLL of the text"}


def _spread(results: Results) -> Effect | None:
    """Between the farthest and the nearest of the three rules where everything is stored."""
    ends, size = results.values["ends"], results.values["vocabulary"]
    names = [f"{rule}_{size}" for rule in RULES]
    if not set(names) <= ends.keys() or len(ends[names[0]]["forward"]) < 2:
        return None
    return over_seeds(np.ptp([ends[name]["forward"] for name in names], axis=0).tolist())


_SAMPLED = (
    "Sampled text, not beam search, as much of it as of the real text. More of the teacher's text, "
    "which costs nothing to make, was not tried."
)

CLAIMS = (
    *(
        Claim(
            f"With k = {k} stored, the rest as one more token brings a student nearer to the "
            "teacher than renormalising (difference of KL(teacher || student), above 0).",
            "card of top-k distillation; losses of TRL and tunix (code)",
            "none: tooling",
            better(f"tail_{k}", f"renormalised_{k}", "forward"),
            above(0.0),
        )
        for k in (1, 2, 4)
    ),
    Claim(
        "With the whole vocabulary stored, the three rules end at the same KL(teacher || student) "
        "(largest difference, below 0.001 nats).",
        "identity: all three are the forward KL",
        "equal",
        _spread,
        below(1e-3),
    ),
    Claim(
        "A student of text that the teacher wrote is nearer to the teacher than one of as much "
        "real text (difference of KL(teacher || student), above 0).",
        "arXiv 1606.07947, section 3.2",
        "qualitative: the teacher's distribution over sequences is what is matched",
        better("sampled", "same", "forward"),
        above(0.0),
        _SAMPLED,
    ),
    Claim(
        "It predicts the real text better too (difference of NLL, above 0).",
        "arXiv 1606.07947, abstract",
        "translation: 4.2 / 1.7 BLEU more than without distillation (greedy / beam search)",
        better("sampled", "same", "nll"),
        above(0.0),
        _SAMPLED,
    ),
)


def results(
    rules: Sequence[RuleName],
    kept: Sequence[int],
    seeds: Sequence[int],
    artefacts: Mapping[str, Any],
    folder: Path,
    vocabulary: int,
) -> Results:
    labels = {f"{rule}_{k}": f"{RULES[rule].label}, k = {k}" for rule in rules for k in kept}
    labels |= TEXTS
    ends = {
        name: {
            measure: [float(artefacts[f"{name}_{seed}_score"].values[measure]) for seed in seeds]
            for measure in MEASURES
        }
        for name in labels
    }
    students = [
        {"learns from": label} | {MEASURES[m]: shown(over_seeds(x)) for m, x in ends[name].items()}
        for name, label in labels.items()
    ]
    stored = {k: dict(artefacts[f"cache_{k}"].values) for k in kept}
    bytes_table = [
        {"k": k, "positions": x["tokens"], "bytes a token": round(x["bytes_per_token"], 2)}
        for k, x in stored.items()
    ]
    repeated = f"95 % over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return Results(
        {"ends": ends, "stored": stored, "vocabulary": vocabulary},
        [
            Table(f"On held-out text, nats a token ({repeated})", students),
            Table("What is stored", bytes_table),
        ],
        _plots(rules, kept, labels, ends, folder),
    )


def _plots(
    rules: Sequence[RuleName],
    kept: Sequence[int],
    labels: Mapping[str, str],
    ends: Mapping[str, Any],
    folder: Path,
) -> dict[str, Path]:
    drawn, order = {}, sorted(kept)
    for rule in rules:
        effects = [over_seeds(ends[f"{rule}_{k}"]["forward"]) for k in order]
        estimates, low, high = (list(x) for x in zip(*effects, strict=True))
        drawn[RULES[rule].label] = plots.Line(order, estimates, low, high)
    by_k = plots.lines(
        folder / "plots" / "by_k.png",
        drawn,
        x="k, characters stored at a position",
        y="KL(teacher || student), nats a token",
        title="On held-out text: less is nearer",
        log_x=True,
        log_y=True,
        reference=(TEXTS["alone"], float(np.mean(ends["alone"]["forward"]))),
    )
    ranking = plots.ranking(
        folder / "plots" / "ranking.png",
        {labels[x]: over_seeds(ends[x]["forward"]) for x in sorted(labels, key=_mean_of(ends))},
        x="KL(teacher || student), nats a token",
        title="Nearest to the teacher first",
    )
    return {"by_k": by_k, "ranking": ranking}


def _mean_of(ends: Mapping[str, Any]) -> Callable[[str], float]:
    return lambda name: float(np.mean(ends[name]["forward"]))
