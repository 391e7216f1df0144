"""Claims, tables and plots of learngene_depths."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.distillation.common import endings
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.effects import over_seeds, shown

# What descendants start from.
STARTS = {
    "random": "random weights",
    "block": "one block",
    "shuffled": "stages, shuffled",
    "stages": "stages (SWS)",
    "line": "a line (TLEG)",
}
ANCESTORS = {
    "genes_line": "line (TLEG), taught",
    "genes_stages": "stages (SWS), taught",
    "genes_block": "one block, taught",
    "ordinary": "ordinary, on labels",
}
# Of R^2: the ordinary transformer after and before its training.
KINDS = {"trained": "trained", "drawn": "as drawn"}


def _above(first: str, second: str) -> Callable[[Results], Effect | None]:
    """Points by which descendants of the first are above those of the second, over depths."""

    def effect(results: Results) -> Effect | None:
        ends = results.values["accuracy"]
        if first not in ends or second not in ends:
            return None
        one, two = (np.array(list(ends[name].values())) for name in (first, second))
        return over_seeds((one - two).mean(0))

    return effect


def _nearer_to_lines(results: Results) -> Effect | None:
    found = results.values["r2"]
    return found and over_seeds(np.subtract(found["trained"]["all"], found["drawn"]["all"]))


CLAIMS = (
    Claim(
        "After one epoch, descendants of genes on a line (TLEG) have a higher test accuracy than "
        "random weights (points, a mean over depths, above 0).",
        "arXiv 2312.05614, abstract",
        "better than other initialisations: +6.87 on iNat-2019, +7.66 on CIFAR-100",
        _above("line", "random"),
        above(0.0),
    ),
    Claim(
        "So have descendants of stages (SWS; above 0).",
        "arXiv 2404.16897, abstract",
        "better than from scratch at a 6.6th of the training",
        _above("stages", "random"),
        above(0.0),
    ),
    Claim(
        "Stages in their order are better than in another (above 0).",
        "arXiv 2404.16897 (why stages: they keep the place in the network)",
        "qualitative",
        _above("stages", "shuffled"),
        above(0.0),
    ),
    Claim(
        "Stages are better than one block for all layers, taught likewise (above 0).",
        "arXiv 2404.16897 (why stages)",
        "qualitative",
        _above("stages", "block"),
        above(0.0),
        "Ancestors of six narrow blocks are as good with one block as with three (75.6 and 76.2 "
        "%), so that their descendants do not differ. Deeper ancestors, longer distillation and "
        "harder data were not tried.",
    ),
    Claim(
        "A line through the layers explains more of an ordinary trained transformer's kernels than "
        "of untrained ones (difference of R^2, above 0).",
        "arXiv 2312.05614, section 1 (the observation behind it)",
        "approximately linear; no R^2 is given (UNVERIFIED)",
        _nearer_to_lines,
        above(0.0),
    ),
)


class Stored(NamedTuple):
    """Parameters: genes of each kind, and networks of each depth."""

    genes: Mapping[str, int]
    networks: Mapping[int, int]


def measured(
    starts: Sequence[str], sizes: Stored, depth: int, artefacts: Mapping[str, Any]
) -> Results:
    """values: "accuracy" and "before" {start: {depth: % [S]}}, "ancestors" {name: % [S]}, "r2"
    {"trained" or "drawn": {kernel: [S]}}, "teacher" and "stored"; with tables.

    depth: of the ancestors.
    """

    def ends(start: str, step: int | None) -> dict[str, list[float]]:
        return {str(d): _accuracy(artefacts[f"{start}_{d}"], step) for d in sizes.networks}

    values = {
        "accuracy": {start: ends(start, None) for start in starts},
        "before": {start: ends(start, 0) for start in starts},
        "ancestors": {n: _accuracy(artefacts[n], None) for n in ANCESTORS if n in artefacts},
        "teacher": _accuracy(artefacts["teacher"], None)[0],
        "r2": _r2(artefacts["lines"].rows) if "lines" in artefacts else None,
        "stored": {"genes": dict(sizes.genes), "networks": sum(sizes.networks.values())},
    }
    tables = [_descendants(values), _networks(values, depth)]
    return Results(values, tables + ([_lines(values, depth)] if values["r2"] else []))


def _descendants(values: Mapping[str, Any]) -> Table:
    stored = values["stored"]
    kept = {"random": 0, "shuffled": stored["genes"].get("stages"), **stored["genes"]}

    def columns(of: Mapping[str, list[float]], more: str) -> dict[str, Effect | float]:
        return {f"depth {d}{more}": shown(over_seeds(x)) for d, x in of.items()}

    rows = [
        {"start": STARTS[start]}
        | columns(of, "")
        | columns(values["before"][start], ", untrained")
        | {
            "numbers kept": kept[start],
            "of a network a depth (%)": 100 * kept[start] / stored["networks"],
        }
        for start, of in values["accuracy"].items()
    ]
    return Table("Descendants: test accuracy (%), 95 % over seeds", rows)


def _networks(values: Mapping[str, Any], depth: int) -> Table:
    rows = [
        {"network": f"{ANCESTORS[name]} ({depth} blocks)", "accuracy": shown(over_seeds(x))}
        for name, x in values["ancestors"].items()
    ]
    title = "What they come from, and from scratch: test accuracy (%)"
    return Table(title, [{"network": "teacher", "accuracy": values["teacher"]}, *rows])


def _lines(values: Mapping[str, Any], depth: int) -> Table:
    r2 = values["r2"]
    rows = [
        {"kernel": kernel} | {KINDS[kind]: shown(over_seeds(r2[kind][kernel])) for kind in KINDS}
        for kernel in r2["trained"]
    ]
    title = "R² of a line through the layers of the ordinary transformer"
    return Table(f"{title}; {1 / (depth - 1):.3g} is that of independent layers", rows)


def results(
    starts: Sequence[str], sizes: Stored, depth: int, artefacts: Mapping[str, Any], folder: Path
) -> Results:
    """`measured`, with plots: accuracy by depth after and before training, and R^2 of lines."""
    found = measured(starts, sizes, depth, artefacts)
    values, made = found.values, {}
    scratch = values["ancestors"].get("ordinary")
    whole = None if scratch is None else ("from scratch, whole training", float(np.mean(scratch)))
    for name, title, reference in (
        ("accuracy", "Descendants after their epoch", whole),
        ("before", "Descendants before they are trained", ("chance", 10.0)),
    ):
        made[name] = plots.lines(
            folder / "plots" / f"{name}.png",
            {STARTS[start]: _line(of) for start, of in values[name].items()},
            x=f"blocks (ancestors have {depth})",
            y="test accuracy (%)",
            title=f"{title} (95 % over seeds)",
            reference=reference,
        )
    if values["r2"]:
        made["r2"] = plots.bars(
            folder / "plots" / "r2.png",
            {
                kernel.removesuffix("/kernel"): {
                    label: over_seeds(values["r2"][kind][kernel]) for kind, label in KINDS.items()
                }
                for kernel in values["r2"]["trained"]
            },
            y="R²",
            title="How much of the kernels a line through the layers explains",
            reference=("independent layers", 1 / (depth - 1)),
        )
    return found._replace(plots=made)


def _r2(rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    parts = {kind: f"{kind}/" for kind in KINDS}
    return {
        kind: {name.removeprefix(p): x.tolist() for name, x in rows.items() if name.startswith(p)}
        for kind, p in parts.items()
    }


def _accuracy(artefact: Any, step: int | None) -> list[float]:
    """Test accuracies [S], at the end by default."""
    if step is None:
        return endings.ending(artefact).accuracy.tolist()
    return artefact.rows[f"{step}/test/accuracy"].tolist()


def _line(of: Mapping[str, list[float]]) -> plots.Line:
    effects = [over_seeds(x) for x in of.values()]
    return plots.Line([int(d) for d in of], *([e[i] for e in effects] for i in range(3)))
