"""Claims and report of `conditional_pretraining`: bad lines against the price for good ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below, within
from kd_jax.launch.effects import over_seeds, shown

SOURCE = "arXiv 2302.08582"
LABELS = {
    "mle": "MLE",
    "filtering": "filtering",
    "conditional": "conditional",
    "unlikelihood": "unlikelihood",
    "rwr": "RWR",
    "awr": "AWR",
}


def _of(
    measure: str, first: str, second: str | None = None, share: float = 1.0
) -> Callable[[Results], Effect | None]:
    """The measure of the first, less that share of the second's; None where one was not run."""

    def effect(results: Results) -> Effect | None:
        ends = results.values["ends"]
        names = [first] if second is None else [first, second]
        if any(name not in ends or len(ends[name][measure]) < 2 for name in names):
            return None
        of = [np.array(ends[name][measure]) for name in names]
        return over_seeds(of[0] if second is None else of[0] - share * of[1])

    return effect


CLAIMS = (
    Claim(
        "MLE writes bad lines as often as it has read them (percent of lines; 20 were read).",
        SOURCE,
        "MLE imitates all of its text",
        _of("bad", "mle"),
        within(15.0, 25.0),
        tried="three seeds (10 to 12), 500 lines: inconclusive as well, 18.1 [10.6, 25.7]",
    ),
    Claim(
        "Conditional training writes a tenth of MLE's bad lines or fewer (points more than a "
        "tenth).",
        SOURCE,
        "up to an order of magnitude fewer toxic texts",
        _of("bad", "conditional", "mle", 0.1),
        below(0.0),
    ),
    Claim(
        "Conditional training pays next to nothing for it: its NLL on good lines is at most 0.02 "
        "nats above that of MLE (difference in nats a character).",
        SOURCE,
        "little KL to GPT-3 more than MLE",
        _of("nll", "conditional", "mle"),
        below(0.02),
        tried="three seeds (10 to 12), 500 lines: inconclusive as well, -0.002 [-0.090, 0.086]",
    ),
    Claim(
        "Filtering writes fewer bad lines than MLE (difference in points).",
        SOURCE,
        "between MLE and conditional training",
        _of("bad", "filtering", "mle"),
        below(0.0),
    ),
    Claim(
        "Filtering, which reads fewer lines, has a higher NLL on good lines than MLE (difference "
        "in nats a character).",
        SOURCE,
        "filtering costs capability",
        _of("nll", "filtering", "mle"),
        above(0.0),
        tried="three seeds (10 to 12), 500 lines: inconclusive as well, 0.010 [-0.087, 0.106]",
    ),
    Claim(
        "Unlikelihood writes fewer bad lines than MLE (difference in points).",
        SOURCE,
        "between MLE and conditional training",
        _of("bad", "unlikelihood", "mle"),
        below(0.0),
    ),
    Claim(
        "Unlikelihood has a higher NLL on good lines than conditional training (difference in nats "
        "a character).",
        SOURCE,
        "conditional training is on the Pareto front in all tasks",
        _of("nll", "unlikelihood", "conditional"),
        above(0.0),
    ),
    *(
        Claim(
            f"{LABELS[name]} writes more bad lines than conditional training (difference in "
            "points).",
            SOURCE,
            "conditional training is on the Pareto front in all tasks",
            _of("bad", name, "conditional"),
            above(0.0),
        )
        for name in ("rwr", "awr")
    ),
)


def results(
    methods: Sequence[str],
    seeds: Sequence[int],
    artefacts: Mapping[str, Any],
    folder: Path,
) -> Results:
    ends = {
        name: {
            measure: [artefacts[f"{name}_{s}"].series(f"written/{measure}")[1][-1] for s in seeds]
            for measure in ("bad", "nll")
        }
        for name in methods
    }
    measured = {name: {m: over_seeds(x) for m, x in of.items()} for name, of in ends.items()}
    rows = [
        {
            "trained by": LABELS[name],
            "bad lines (%)": shown(of["bad"]),
            "NLL of good lines": shown(of["nll"]),
        }
        for name, of in measured.items()
    ]
    drawn, many = folder / "plots", f"{len(seeds)} seeds"
    return Results(
        {"ends": ends},
        [Table(f"Lines written, and held-out lines read (95 % over {many})", rows)],
        {
            "trade_off": plots.trade_off(
                drawn / "trade_off.png",
                {
                    LABELS[name]: plots.Line([of["nll"].estimate], [of["bad"].estimate])
                    for name, of in measured.items()
                },
                x="NLL of good lines, nats a character",
                y="bad lines written (%)",
                title=f"Down and to the left is better (means of {many})",
            ),
            "bad": plots.ranking(
                drawn / "bad.png",
                {LABELS[name]: of["bad"] for name, of in measured.items()},
                x="bad lines written (%)",
                title=f"Bad lines, {many} (95 %)",
            ),
        },
    )
