"""Claims, tables and plots of layer_swap_cipher."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merging.common.reporting import line, over_seeds
from kd_jax.launch import plots
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Claim, Effect, Results, Table, above

MODELS = (
    "pretrained", "task expert", "language expert", "average", "task arithmetic", "layer swap",
)  # fmt: skip
MEASURES = {
    "task in B": "task in B (%)",
    "task in A": "task in A (%)",
    "text in B": "NLL of text in B",
    "text in A": "NLL of text in A",
}


def _more(ours: str, theirs: str) -> Callable[[Results], Effect | None]:
    def read(results: Results) -> Effect | None:
        found = results.values["right"]
        if len(found[ours]) < 2:
            return None
        return over_seeds(np.subtract(found[ours], found[theirs]))

    return read


_PAPER = "10 % above the best expert and other merges on MGSM, four languages (UNVERIFIED)"


_TRIED = (
    "Three seeds that differ widely. On seed 0 sums in place of words were not learned, and with "
    "alphabets of their own, or one for both languages, the task did not cross from A to B at all: "
    "hence B's characters begin with A's embeddings. More layers, a larger model and more seeds "
    "were not tried."
)


def _claim(theirs: str, said: str) -> Claim:
    return Claim(
        f"The swap is better than {said} at the task in the language in which it was not learned "
        "(difference in points, paired seeds).",
        "arXiv 2410.01335, abstract",
        _PAPER,
        _more("layer swap", theirs),
        above(0.0),
        _TRIED,
    )


CLAIMS = (
    _claim("better expert", "the better expert of each seed"),
    _claim("average", "averaging the experts"),
    _claim("task arithmetic", "task arithmetic with a validated scale"),
    Claim(
        "Both ends have to be swapped: the best swap with layers at the bottom and at the top is "
        "better than the best with one of them only (difference in points, each chosen on "
        "validation words, paired seeds).",
        "arXiv 2410.01335, section 3",
        "bottom and top layers are swapped (UNVERIFIED)",
        _more("both ends", "one end"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "The language moves outer layers more than the task does: the share of an expert's change "
        "that is in the first and the last layer, language less task (in points, paired seeds).",
        "arXiv 2410.01335, section 3",
        "language in outer layers, mathematics in inner ones (UNVERIFIED)",
        _more("outer change, language", "outer change, task"),
        above(0.0),
        _TRIED,
    ),
)


def results(
    depth: int,
    swaps: Sequence[tuple[int, int, int]],
    found: Sequence[Artefact],
    folder: Path,
) -> Results:
    """values["right"]: {model: per cent of the task in B, one a seed}; a table, three plots."""
    measured = {
        name: {m: [x.values[f"{name}/{m}"] for x in found] for m in MEASURES} for name in MODELS
    }
    right = {name: measured[name]["task in B"] for name in MODELS}
    right["better expert"] = np.maximum(right["task expert"], right["language expert"]).tolist()
    for name, wanted in (("both ends", True), ("one end", False)):
        own = [i for i, (bottom, top, _) in enumerate(swaps) if (bottom > 0 < top) == wanted]
        right[name] = [_chosen(x, own) for x in found] if own else [float("nan")] * len(found)
    for name in ("language", "task"):
        right[f"outer change, {name}"] = [_outer(x.rows[f"{name}_change"]) for x in found]
    rows: list[dict[str, Any]] = [
        {"model": name} | {MEASURES[m]: _shown(x) for m, x in measured[name].items()}
        for name in MODELS
    ]
    chosen = [{"seed": i, **_said(x.values)} for i, x in enumerate(found)]
    values = {"right": right, "chosen": chosen}
    tables = [
        Table(f"After merging (95 % over {len(found)} seeds)", rows),
        Table("Chosen on validation words", chosen),
    ]
    return Results(values, tables, _plots(depth, swaps, found, right, folder))


def _chosen(artefact: Artefact, places: Sequence[int]) -> float:
    """The test result of the swap that is best on validation, of some."""
    best = max(places, key=lambda i: artefact.rows["swaps_validation"][i])
    return float(artefact.rows["swaps"][best])


def _outer(change: np.ndarray) -> float:
    return 100 * float((change[0] + change[-1]) / change.sum())


def _shown(values: Sequence[float]) -> Effect | float:
    return over_seeds(values) if len(values) > 1 else values[0]


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bottom", "top", "transition")
    return dict(zip(names, values["chosen"], strict=True)) | {"scale": values["scale"]}


def _plots(
    depth: int,
    swaps: Sequence[tuple[int, int, int]],
    found: Sequence[Artefact],
    right: Mapping[str, Sequence[float]],
    folder: Path,
) -> dict[str, Path]:
    made = {}
    means = np.mean([x.rows["swaps"] for x in found], 0)
    for transition in sorted({swap[2] for swap in swaps}):
        cells = {str(b): {str(t): float("nan") for t in range(depth)} for b in range(depth)}
        cells["0"]["0"] = float(np.mean(right["task expert"]))
        for (bottom, top, own), mean in zip(swaps, means, strict=True):
            if own == transition:
                cells[str(bottom)][str(top)] = float(mean)
        made[f"swaps_{transition}"] = plots.heatmap(
            folder / "plots" / f"swaps_{transition}.png",
            cells,
            x="layers swapped at the top",
            y="layers swapped at the bottom",
            title=f"Task in B (%), transitions of {transition}",
        )
    made["models"] = plots.ranking(
        folder / "plots" / "models.png",
        {name: over_seeds(right[name]) for name in MODELS if len(found) > 1},
        x="words written backwards in B (%)",
        title="A task learned in A, the text in B",
    )
    layers = list(range(1, depth + 1))
    made["change"] = plots.lines(
        folder / "plots" / "change.png",
        {
            f"{name} expert": _change(layers, [x.rows[f"{name}_change"] for x in found])
            for name in ("task", "language")
        },
        x="layer",
        y="mean |change| of a weight",
        title="How far fine-tuning moves each layer",
    )
    return made


def _change(layers: Sequence[int], changes: Sequence[np.ndarray]) -> plots.Line:
    return (
        line(layers, np.stack(changes))
        if len(changes) > 1
        else plots.Line(layers, changes[0].tolist())
    )
