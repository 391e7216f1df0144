"""Small plots for results: lines with intervals, bars with intervals, trade-offs.

Sized for a README, colours that stay apart for colour-blind readers (Okabe and Ito), and never by
colour alone: series differ in marker and dash too. Legends stand below the axes, not over data.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kd_jax.launch.claims import Effect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
_STYLE: Any = {
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
    with _drawing(path, x, y, title) as axes:
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
    return Path(path)


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
    with _drawing(path, x, y, title) as axes:
        axes.grid(axis="x", visible=False)
        for i, label in enumerate(labels):
            at, heights, reach = [], [], []
            for place, group in enumerate(groups.values()):
                if label in group:
                    value = group[label]
                    # Without an interval, no whisker is drawn.
                    e = value if isinstance(value, Effect) else Effect(value, math.nan, math.nan)
                    at.append(place + (i - (len(labels) - 1) / 2) * width)
                    heights.append(e.estimate)
                    # Rounding may put an end of the interval a hair on the wrong side.
                    reach.append(np.maximum([e.estimate - e.low, e.high - e.estimate], 0.0))
            axes.bar(at, heights, width * 0.92, color=_look(i)[0], label=label)
            axes.errorbar(
                at, heights, np.transpose(reach), fmt="none", ecolor="#333333", capsize=2, lw=1
            )
        axes.set_xticks(range(len(groups)), list(groups))
        _reference(axes, reference)
    return Path(path)


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
    with _drawing(path, x, y, title) as axes:
        for i, (label, line) in enumerate(series.items()):
            colour, marker, _ = _look(i)
            axes.plot(line.x, line.y, color=colour, marker=marker, lw=0.8, ms=4)
            if len(line.x) > 1:
                axes.plot(line.x[:1], line.y[:1], marker, ms=8, mfc="white", mec=colour)
            axes.plot(line.x[-1:], line.y[-1:], marker, ms=10, color=colour, label=label)
    return Path(path)


def ranking(
    path: str | Path,
    values: Mapping[str, Effect],
    *,
    x: str,
    title: str = "",
    reference: tuple[str, float] | None = None,
) -> Path:
    """A bar with a whisker for each of `values`, the first at the top; names may be many."""
    with _drawing(path, x, "", title) as axes:
        axes.grid(axis="y", visible=False)
        at = np.arange(len(values))
        effects = list(values.values())
        heights = [e.estimate for e in effects]
        reach = np.maximum([[e.estimate - e.low, e.high - e.estimate] for e in effects], 0.0).T
        axes.barh(at, heights, 0.72, color=COLOURS[0])
        axes.errorbar(heights, at, xerr=reach, fmt="none", ecolor="#333333", capsize=2, lw=1)
        axes.set_yticks(at, list(values))
        axes.invert_yaxis()
        if reference is not None and math.isfinite(reference[1]):
            axes.axvline(reference[1], color="#555555", lw=1, linestyle=":", label=reference[0])
    return Path(path)


def _look(i: int) -> tuple[str, str, Any]:
    # From the ninth on colours come again, each with another marker and dash.
    j = i + i // len(COLOURS)
    return COLOURS[i % len(COLOURS)], MARKERS[j % len(MARKERS)], DASHES[j % len(DASHES)]


@contextlib.contextmanager
def _drawing(path: str | Path, x: str, y: str, title: str) -> Iterator["Axes"]:
    """Axes to draw on; saved at the end, with a legend where something has a label."""
    # Half a second to import: `--help` does without.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title, loc="left", fontsize=11)
        yield axes
        labels = axes.get_legend_handles_labels()[1]
        if labels:
            columns = max(1, min(4, len(labels), 60 // max(map(len, labels))))
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _reference(axes: "Axes", reference: tuple[str, float] | None) -> None:
    if reference is not None and math.isfinite(reference[1]):
        axes.axhline(reference[1], color="#555555", lw=1, linestyle=":", label=reference[0])
