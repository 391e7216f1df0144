"""Small plots for results: lines with intervals, bars with intervals, trade-offs.

Sized for a README, colours that stay apart for colour-blind readers (Okabe and Ito), and never by
colour alone: series differ in marker and dash too. Legends stand below the axes, not over data.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.launch.claims import Effect

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "font.size": 10,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


class Line(NamedTuple):
    """Points (x, y); `low` and `high` are the interval of each y, or None."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def lines(
    path: str | Path,
    series: Mapping[str, Line],
    *,
    x: str,
    y: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    reference: tuple[str, float] | None = None,
) -> Path:
    """One line for each of `series` with its interval shaded. `reference` is a labelled level."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x, y, title)
        for i, (label, line) in enumerate(series.items()):
            colour, marker, dash = _look(i)
            axes.plot(line.x, line.y, color=colour, marker=marker, linestyle=dash, label=label)
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, lw=0)
        _reference(axes, reference)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        return _save(figure, axes, path)


def bars(
    path: str | Path,
    groups: Mapping[str, Mapping[str, Effect | float]],
    *,
    y: str,
    x: str = "",
    title: str = "",
    reference: tuple[str, float] | None = None,
) -> Path:
    """Groups of bars: {group on the x axis: {series: value or Effect}}; an Effect has whiskers."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    width = 0.8 / max(1, len(labels))
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x, y, title)
        axes.grid(axis="x", visible=False)
        for i, label in enumerate(labels):
            at, heights, reach = [], [], []
            for place, group in enumerate(groups.values()):
                if label in group:
                    value = group[label]
                    e = value if isinstance(value, Effect) else Effect(value, value, value)
                    at.append(place + (i - (len(labels) - 1) / 2) * width)
                    heights.append(e.estimate)
                    reach.append((e.estimate - e.low, e.high - e.estimate))
            axes.bar(at, heights, width * 0.92, color=_look(i)[0], label=label)
            whiskers = [list(side) for side in zip(*reach, strict=True)]
            axes.errorbar(at, heights, whiskers, fmt="none", ecolor="#333333", capsize=2, lw=1)
        axes.set_xticks(range(len(groups)), list(groups))
        _reference(axes, reference)
        return _save(figure, axes, path)


def trade_off(
    path: str | Path,
    series: Mapping[str, Line],
    *,
    x: str,
    y: str,
    title: str = "",
) -> Path:
    """Paths through the plane of two measures: a thin line from the hollow start to the large end.

    A series of one point is drawn as a large marker alone.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x, y, title)
        for i, (label, line) in enumerate(series.items()):
            colour, marker, _ = _look(i)
            axes.plot(line.x, line.y, color=colour, marker=marker, lw=0.8, ms=4)
            if len(line.x) > 1:
                axes.plot(line.x[:1], line.y[:1], marker, ms=8, mfc="white", mec=colour)
            axes.plot(line.x[-1:], line.y[-1:], marker, ms=10, color=colour, label=label)
        return _save(figure, axes, path)


def _look(i: int):
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)]


def _axes(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def _reference(axes: Axes, reference: tuple[str, float] | None) -> None:
    if reference is not None and math.isfinite(reference[1]):
        axes.axhline(reference[1], color="#555555", lw=1, linestyle=":", label=reference[0])


def _save(figure: Figure, axes: Axes, path: str | Path) -> Path:
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        columns = max(1, min(4, len(labels), 60 // max(map(len, labels))))
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
