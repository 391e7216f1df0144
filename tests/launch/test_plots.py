"""Plots are drawn, small, and not empty; the legend does not lie over the data."""

import math

import matplotlib.image
import numpy as np
import pytest

from kd_jax.launch.claims import Effect
from kd_jax.launch.plots import (
    COLOURS,
    Line,
    bars,
    before_after,
    heatmap,
    lines,
    ranking,
    trade_off,
)


def colours_in(path) -> set[tuple[int, ...]]:
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    return set(map(tuple, pixels.reshape(-1, 3)))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def draw_lines(path):
    return lines(
        path,
        {
            "KD": Line([0, 1, 2], [1.0, 0.5, 0.2], [0.9, 0.4, 0.1], [1.1, 0.6, 0.3]),
            "plain": Line([0, 1, 2], [1.0, math.nan, 0.6]),
        },
        x="step",
        y="loss",
        reference=("teacher", 0.1),
    )


def draw_bars(path):
    groups = {"digits": {"KD": Effect(0.9, 0.8, 0.95), "plain": 0.7}, "fashion": {"plain": 0.6}}
    return bars(path, groups, y="accuracy", title="Students")


def draw_trade_off(path):
    series = {"NPO": Line([0.9, 0.5, 0.1], [0.8, 0.7, 0.6]), "retrained": Line([0.1], [0.8])}
    return trade_off(path, series, x="forget", y="retain")


def draw_before_after(path):
    points = {"to keep": Line([0.9, 0.8], [0.8, 0.8]), "to forget": Line([0.9, 0.7], [0.1, 0.0])}
    panels = dict.fromkeys(("GA", "NPO", "NPO+RT", "RMU", "FLAT"), points)
    return before_after(path, panels, x="before", y="after", title="Each question")


def test_before_and_after_are_on_the_right_axes(tmp_path):
    """Probability .9 before and .1 after lies at the lower right of a panel."""
    points = {"kept": Line([], []), "forgotten": Line([0.9], [0.1])}
    path = before_after(tmp_path / "plot.png", {"GA": points}, x="before", y="after")
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    rows, columns = np.nonzero((pixels == rgb(COLOURS[1])).all(-1))
    panel = rows > len(pixels) / 3  # the legend is above
    assert columns[panel].mean() > 0.6 * pixels.shape[1]
    assert rows[panel].mean() > 0.6 * len(pixels)


@pytest.mark.parametrize("draw", [draw_lines, draw_bars, draw_trade_off, draw_before_after])
def test_plots_are_small_and_show_each_series(draw, tmp_path):
    path = draw(tmp_path / "plots" / "plot.png")
    assert 5_000 < path.stat().st_size < 100_000
    assert {rgb(COLOURS[0]), rgb(COLOURS[1])} <= colours_in(path)


def test_drawing_twice_gives_the_same_file(tmp_path):
    one, two = draw_lines(tmp_path / "1.png"), draw_lines(tmp_path / "2.png")
    assert one.read_bytes() == two.read_bytes()


def test_the_legend_stands_below_the_axes(tmp_path):
    """The first series' colour fills the legend's swatch below the frame of the axes."""
    path = draw_bars(tmp_path / "plot.png")
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    mine = np.all(pixels == np.array(rgb(COLOURS[0])), axis=-1).any(1)
    rows = np.flatnonzero(mine)
    gaps = np.flatnonzero(np.diff(rows) > 5)
    assert len(gaps) == 1  # the bar, a gap with the axis labels, the swatch


def test_a_ranking_has_a_bar_for_each_name_the_first_at_the_top(tmp_path):
    values = {"best": Effect(1.0, 0.8, 1.3), "worst": Effect(4.0, 4.0, 4.0)}
    path = ranking(tmp_path / "plot.png", values, x="gap", reference=("noise", 0.5))
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    blue = (pixels == rgb(COLOURS[0])).all(-1)
    rows = np.flatnonzero(blue.any(1))
    (cut,) = np.flatnonzero(np.diff(rows) > 1)  # two bars and a space between
    upper, lower = blue[rows[: cut + 1]].sum(1).max(), blue[rows[cut + 1 :]].sum(1).max()
    np.testing.assert_allclose(lower / upper, 4.0, rtol=0.05)


def test_a_heat_map_colours_its_cells_by_their_numbers(tmp_path):
    values = {"TIES": {"a": 0.0, "b": 50.0}, "average": {"a": 100.0}}
    path = heatmap(tmp_path / "plot.png", values, title="accuracy")
    found = colours_in(path)
    low, high = (0, 34, 78), (254, 232, 56)  # the ends of the colours
    middle = (124, 123, 120)
    for colour in (low, high, middle):
        assert min(max(abs(a - b) for a, b in zip(c, colour, strict=True)) for c in found) <= 3
    fixed = colours_in(heatmap(tmp_path / "fixed.png", values, low=-100.0, high=200.0))
    assert not {low, high} & fixed


def test_beyond_eight_series_no_two_look_alike():
    from kd_jax.launch import plots

    looks = [plots._look(i) for i in range(40)]
    assert len(set(looks)) == len(looks)
