"""Small plots for results: lines and bars with intervals, trade-offs, heat maps.

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
    from matplotlib.figure import Figure
    from matplotlib.typing import LegendLocType

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
_HEIGHT = 4.2  # inches
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
        elif all(float(at).is_integer() for line in series.values() for at in line.x):
            axes.locator_params(axis="x", integer=True)
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
    height = max(_HEIGHT, 1.0 + 0.19 * len(values))  # a line of text for each name
    with _drawing(path, x, "", title, height=height) as axes:
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


def heatmap(
    path: str | Path,
    values: Mapping[str, Mapping[str, float]],
    *,
    x: str = "",
    y: str = "",
    title: str = "",
    digits: int = 0,
    low: float | None = None,
    high: float | None = None,
) -> Path:
    """A cell for each {row: {column: number}}, coloured and written out; missing ones stay empty.

    low, high: the ends of the colours, by default the smallest and largest number.
    """
    columns = list(dict.fromkeys(name for row in values.values() for name in row))
    cells = np.array([[row.get(c, math.nan) for c in columns] for row in values.values()])
    ends = [np.nanmin(cells) if low is None else low, np.nanmax(cells) if high is None else high]
    # Wide enough for the numbers, high enough for the names.
    size = (2.6 + 0.75 * len(columns), 1.3 + 0.3 * len(values))
    with _figure(path, size) as figure:
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.imshow(cells, cmap="cividis", vmin=ends[0], vmax=ends[1], aspect="auto")
        turn, side = (30, "right") if max(map(len, columns)) > 6 else (0, "center")
        axes.set_xticks(range(len(columns)), columns, rotation=turn, ha=side)
        axes.set_yticks(range(len(values)), list(values))
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, loc="left", fontsize=11)
        for (i, j), value in np.ndenumerate(cells):
            if math.isfinite(value):
                dark = value < np.mean(ends)
                text = f"{value:.{digits}f}"
                axes.text(j, i, text, ha="center", va="center", color="w" if dark else "k")
    return Path(path)


def before_after(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Line]],
    *,
    x: str,
    y: str,
    title: str = "",
) -> Path:
    """A panel for each of `panels`, up to four in a row: points (before, after) of each series.

    On the dotted diagonal nothing has changed. All panels have the same axes, from 0 to 1.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with _figure(path, (2.3 * columns, 2.3 * rows + 0.8)) as figure:
        places = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
        figure.supxlabel(x, fontsize=10)
        figure.supylabel(y, fontsize=10)
        for place in places[len(panels) :]:
            place.set_visible(False)
        for axes, (label, series) in zip(places, panels.items(), strict=False):
            axes.plot([0, 1], [0, 1], color="#555555", lw=1, linestyle=":")
            for i, (name, points) in enumerate(series.items()):
                colour, marker, _ = _look(i)
                axes.plot(points.x, points.y, marker, ms=3, color=colour, label=name)
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            axes.set_title(label, fontsize=10)
            axes.tick_params(labelbottom=True)
        _legend(figure, places[0], "outside upper right")
    return Path(path)


def _look(i: int) -> tuple[str, str, Any]:
    # From the ninth on colours come again, each with another marker and dash.
    j = i + i // len(COLOURS)
    return COLOURS[i % len(COLOURS)], MARKERS[j % len(MARKERS)], DASHES[j % len(DASHES)]


@contextlib.contextmanager
def _drawing(
    path: str | Path, x: str, y: str, title: str, *, height: float = _HEIGHT
) -> Iterator["Axes"]:
    """Axes to draw on; saved at the end, with a legend where something has a label."""
    with _figure(path, (6.4, height)) as figure:
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title, loc="left", fontsize=11)
        yield axes
        _legend(figure, axes)


@contextlib.contextmanager
def _figure(path: str | Path, size: tuple[float, float]) -> Iterator["Figure"]:
    """An empty figure of so many inches, saved at the end."""
    # Half a second to import: `--help` does without.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _legend(
    figure: "Figure", axes: "Axes", place: "LegendLocType" = "outside lower center"
) -> None:
    """Outside of the axes, of what has a label on them."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = max(1, min(4, len(labels), 60 // max(map(len, labels))))
        figure.legend(handles, labels, loc=place, ncols=columns, frameon=False, fontsize=9)


def _reference(axes: "Axes", reference: tuple[str, float] | None) -> None:
    if reference is not None and math.isfinite(reference[1]):
        axes.axhline(reference[1], color="#555555", lw=1, linestyle=":", label=reference[0])
