"""Claims and report of `dco_pass_at_n`: curves, and what is left of them at the end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below
from kd_jax.launch.effects import over_seeds

SOURCE = "arXiv 2502.07154"


def _end(results: Results, trained: int, measure: str) -> np.ndarray | None:
    """[seeds], or None where no model was trained for so many guesses."""
    found = results.values["ends"].get(str(trained))
    return None if found is None else np.array(found[measure])


def _between(trained: int, other: int, measure: str) -> Callable[[Results], Effect | None]:
    """How much higher the measure is for models trained for `trained` than for `other` guesses."""

    def effect(results: Results) -> Effect | None:
        first, second = (_end(results, n, measure) for n in (trained, other))
        return None if first is None or second is None else over_seeds(first - second)

    return effect


def _growth(measure: str) -> Callable[[Results], Effect | None]:
    """How much higher the measure of cross-entropy is at the end than early."""

    def effect(results: Results) -> Effect | None:
        early, end = (results.values[name]["1"].get(measure) for name in ("early", "ends"))
        return None if early is None else over_seeds(np.subtract(end, early))

    return effect


def _matched(n: int) -> Callable[[Results], Effect | None]:
    """By how much the model trained for n beats, at n, the best of all others of its seed."""

    def effect(results: Results) -> Effect | None:
        own = _end(results, n, f"pass@{n}")
        if own is None:
            return None
        ends = results.values["ends"].items()
        return over_seeds(own - np.max([x[f"pass@{n}"] for key, x in ends if key != str(n)], 0))

    return effect


CLAIMS = (
    Claim(
        "With cross-entropy, pass@16 is lower at the end than after a twelfth of the training "
        "(difference in points).",
        SOURCE,
        "MATH, Llama-3-8B: pass@N falls with more epochs where N is large (figures UNVERIFIED)",
        _growth("pass@16"),
        below(0.0),
    ),
    Claim(
        "With cross-entropy, pass@1 is higher at the end than after a twelfth of the training "
        "(difference in points).",
        SOURCE,
        "MATH, Llama-3-8B: pass@1 rises meanwhile (figures UNVERIFIED)",
        _growth("pass@1"),
        above(0.0),
    ),
    Claim(
        "Training for 16 guesses has a higher pass@16 than cross-entropy (difference in points).",
        SOURCE,
        "higher at N as trained (figures UNVERIFIED)",
        _between(16, 1, "pass@16"),
        above(0.0),
    ),
    Claim(
        "Training for 16 guesses has a lower pass@1 than cross-entropy (difference in points).",
        SOURCE,
        "lower at N = 1 (figures UNVERIFIED)",
        _between(16, 1, "pass@1"),
        below(0.0),
    ),
    *(
        Claim(
            f"At {n} guesses the model trained for {n} is better than every other (difference to "
            "the best of them in each seed, in points).",
            SOURCE,
            "training N that matches test N is best (figures UNVERIFIED)",
            _matched(n),
            above(0.0),
        )
        for n in (4, 16, 64)
    ),
    Claim(
        "Training for 16 guesses makes less confident predictions of test images than "
        "cross-entropy (difference of the mean largest probability, in points).",
        SOURCE,
        "its confidence is capped (figures UNVERIFIED)",
        _between(16, 1, "confidence"),
        below(0.0),
    ),
)


def results(config: Any, artefacts: Mapping[str, Any], folder: Path) -> Results:
    """config: that of the experiment."""
    measures = [f"pass@{n}" for n in config.counts] + ["confidence"]

    def curves(n: int, measure: str) -> tuple[list[float], np.ndarray]:
        """(epochs, values [seeds, epochs]) after the start."""
        series = [artefacts[f"for_{n}_{s}"].series(f"test/{measure}") for s in config.repetitions]
        epochs = [step / config.epoch for step in series[0][0]]
        return epochs[1:], np.array([values for _, values in series])[:, 1:]

    def at(place: int) -> dict[str, Any]:
        return {
            str(n): {m: curves(n, m)[1][:, place].tolist() for m in measures} for n in config.counts
        }

    values = {"early": at(0), "ends": at(-1)}
    names = {n: "cross-entropy" if n == 1 else f"DCO for {n}" for n in config.counts}

    def table(which: str) -> list[dict[str, Any]]:
        return [
            {"trained by": names[n]}
            | {f"{m} (%)": over_seeds(x) for m, x in values[which][str(n)].items()}
            for n in config.counts
        ]

    drawn, seeds = folder / "plots", f"{config.seeds} seeds (95 %)"
    figures = {
        f"pass_at_{m}": plots.lines(
            drawn / f"pass_at_{m}.png",
            {names[n]: _line(*curves(n, f"pass@{m}")) for n in config.counts},
            x="epoch",
            y=f"pass@{m} (%)",
            title=f"Test images, {m} guess{'es' if m > 1 else ''} each, {seeds}",
        )
        for m in (1, 16)
        if m in config.counts
    }
    figures["ends"] = plots.lines(
        drawn / "ends.png",
        {
            names[n]: _line(
                config.counts,
                np.transpose([values["ends"][str(n)][f"pass@{m}"] for m in config.counts]),
            )
            for n in config.counts
        },
        x="guesses",
        y="pass (%)",
        title=f"After {config.epochs} epochs, {seeds}",
        log_x=True,
    )
    tables = [
        Table(f"After {config.epochs} epochs, {seeds}", table("ends")),
        Table(f"After {config.epochs // config.measured} epochs, {seeds}", table("early")),
    ]
    return Results(values, tables, figures)


def _line(x: Any, values: np.ndarray) -> plots.Line:
    effects = [over_seeds(column) for column in values.T]
    return plots.Line(list(x), *([effect[i] for effect in effects] for i in range(3)))
