"""Charts for print, the same bytes for the same numbers."""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure

from medvlsm_jax import atomic
from medvlsm_jax.reporting.figure_style import INK, colour, drawing, hatch, line, linestyle, marker, patch, shorten

WIDTH, COLUMN = 6.9, 3.3  # inches: the width of a page's text, and of one of its two columns
MAX_SERIES = 8  # in one figure
MAX_PANELS = 6  # in one figure, which must fit on a page
WHISKERS = (5, 95)  # percentiles


class Bar(NamedTuple):
    """A mean with its interval; `is_marked` is drawn full, others hollow."""

    mean: float
    low: float | None
    high: float | None
    is_marked: bool = True


Bars = Mapping[str, Mapping[str, Bar]]  # series -> category -> bar
Curve = Float[np.ndarray, "points 2"]


# --- Charts ----------------------------------------------------------------------------------------------------------


@drawing()
def box_plots(
    panels: Mapping[str, Mapping[str, Mapping[str, Float[np.ndarray, " n"]]]], series: Sequence[str], ylabel: str
) -> Figure:
    """Boxes from quartile to quartile with median and mean (diamond), whiskers at the WHISKERS.

    Args:
        panels: title -> category on the x axis -> series -> values, 0 to 1.
        series: all series that may occur, so that each looks the same in every figure.
        ylabel: of the values.
    """
    most = max(sum(map(len, panel.values())) for panel in panels.values())
    figure, axes = make_panels(len(panels), 3 if most <= 6 else 2 if most <= 16 else 1, 1.55, is_narrow=most <= 8)
    width = 0.8 / max(len(found) for panel in panels.values() for found in panel.values())
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        for x, found in enumerate(panel.values()):
            for at, name in beside(x, list(found), width):
                draw_box(ax, at, found[name], 0.85 * width, series.index(name))
        categories(ax, list(panel))
        of_shares(ax, title, ylabel)
    add_legend(
        figure, [patch(i, name) for i, name in present(series, [one for p in panels.values() for one in p.values()])]
    )
    return fixed(figure)


def draw_box(ax: Axes, at: float, values: Float[np.ndarray, " n"], width: float, i: int) -> None:
    """One box."""
    look = {"color": INK, "linewidth": 0.6}
    ax.bxp(
        boxplot_stats(values, whis=WHISKERS),
        positions=[at],
        widths=width,
        patch_artist=True,
        showfliers=False,
        showmeans=True,
        manage_ticks=False,
        boxprops={"facecolor": colour(i), "hatch": hatch(i), "edgecolor": INK, "linewidth": 0.6},
        medianprops={"color": "black", "linewidth": 1.2},
        meanprops={"marker": "D", "markersize": 2.2, "markerfacecolor": "white", "markeredgecolor": "black"},
        whiskerprops=look,
        capprops=look,
    )


@drawing()
def dots(panels: Mapping[str, Bars], series: Sequence[str], ylabel: str) -> Figure:
    """Means with intervals, categories along the x axis; hollow where a bar is not marked.

    Args:
        panels: title -> series -> category -> mean, 0 to 1.
        series: all that may occur.
        ylabel: of the means.
    """
    most = max(len(names_of(panel.values())) for panel in panels.values())
    figure, axes = make_panels(len(panels), 2 if most <= 6 else 1, 1.9, is_narrow=most <= 6)
    shown = [bar for panel in panels.values() for found in panel.values() for bar in found.values()]
    ends = [end for bar in shown for end in (bar.mean, bar.low, bar.high) if end is not None]
    limits = (max(-0.02, min(ends) - 0.05), min(1.02, max(ends) + 0.05))
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        names = names_of(panel.values())
        for x, category in enumerate(names):
            found = [name for name in panel if category in panel[name]]
            for at, name in beside(x, found, min(0.14, 0.7 / len(found))):
                draw_dot(ax, at, panel[name][category], series.index(name))
        categories(ax, names)
        of_shares(ax, title, ylabel)
        ax.set_ylim(*limits)
    add_legend(figure, [line(i, name, is_curve=False) for i, name in present(series, panels.values())])
    return fixed(figure)


def draw_dot(ax: Axes, x: float, bar: Bar, i: int) -> None:
    """A mean with its interval."""
    ax.errorbar(
        [x],
        [bar.mean],
        yerr=errors(bar),
        color=colour(i),
        marker=marker(i),
        markerfacecolor=colour(i) if bar.is_marked else "white",
        markersize=4,
        elinewidth=0.9,
        capsize=1.8,
    )


@drawing()
def bars(panels: Mapping[str, Bars], series: Sequence[str], xlabel: str) -> Figure:
    """Horizontal bars with intervals, categories from top to bottom; hollow where a bar is not marked.

    Args:
        panels: title -> series -> category -> bar.
        series: all that may occur.
        xlabel: of the bars.
    """
    counts = [
        [sum(name in found for found in panel.values()) for name in names_of(panel.values())]
        for panel in panels.values()
    ]
    thick = 0.8 / max(map(max, counts))
    height = 0.55 + max(map(len, counts)) * max(0.2, 0.1 / thick + 0.04)
    figure, axes = make_panels(len(panels), 2, height, is_narrow=True)
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        names = names_of(panel.values())
        for y, category in enumerate(names):
            for at, name in beside(y, [name for name in panel if category in panel[name]], thick):
                draw_bar(ax, at, panel[name][category], 0.88 * thick, series.index(name))
        ax.set_yticks(range(len(names)), [shorten(name) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.axvline(0, color=INK, linewidth=0.6)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x")
    limits = [limit for ax in axes for limit in ax.get_xlim()]
    for ax in axes:
        ax.set_xlim(min(limits), max(limits) + 0.05 * (max(limits) - min(limits)))
    add_legend(figure, [patch(i, name) for i, name in present(series, panels.values())])
    return fixed(figure)


def draw_bar(ax: Axes, y: float, bar: Bar, thick: float, i: int) -> None:
    """A bar with its interval; a marked one also has an asterisk at its end."""
    ax.barh(
        y,
        bar.mean,
        height=thick,
        xerr=errors(bar),
        facecolor=colour(i) if bar.is_marked else "white",
        edgecolor=INK if bar.is_marked else colour(i),
        hatch=hatch(i) if bar.is_marked else None,
        linewidth=0.6,
        error_kw={"elinewidth": 0.8, "capsize": 1.8, "ecolor": INK},
    )
    if bar.is_marked:
        ends = [end for end in (bar.mean, bar.low, bar.high, 0.0) if end is not None]
        end, side = (max(ends), 1) if bar.mean >= 0 else (min(ends), -1)
        ax.annotate(
            "*", (end, y), (3 * side, -1), textcoords="offset points", ha="left" if side > 0 else "right", va="center"
        )


@drawing()
def lines(
    panels: Mapping[str, Mapping[str, Curve]],
    series: Sequence[str],
    xlabels: Sequence[str],
    ylabels: Sequence[str],
    *,
    diagonal: str = "",
) -> Figure:
    """Curves of x and y, two panels beside each other.

    Args:
        panels: title -> series -> points.
        series: all that may occur.
        xlabels: of each panel.
        ylabels: of each panel.
        diagonal: title of the panel in which a dotted diagonal shows what is perfect.
    """
    figure, axes = make_panels(len(panels), 2, 2.2, is_narrow=True)
    for ax, (title, panel), xlabel, ylabel in zip(axes, panels.items(), xlabels, ylabels, strict=True):
        if title == diagonal:
            ax.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
        for name, points in panel.items():
            draw_curve(ax, points, series.index(name))
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid()
    add_legend(figure, [line(i, name) for i, name in present(series, panels.values())])
    return fixed(figure)


def draw_curve(ax: Axes, points: Curve, i: int) -> None:
    """A curve; where its points are many, a few are marked, each series at its own."""
    every = max(1, len(points) // 10)
    ax.plot(
        *points.T,
        color=colour(i),
        linestyle=linestyle(i),
        marker=marker(i),
        markersize=3,
        markerfacecolor="white",
        markeredgewidth=0.8,
        markevery=(i * every // MAX_SERIES, every),
    )


# --- Parts -----------------------------------------------------------------------------------------------------------


def make_panels(count: int, columns: int, height: float, *, is_narrow: bool) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a page with at most so many columns of panels, each so many inches high.

    A narrow panel that is alone is as wide as a page's column.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width = COLUMN if is_narrow and count == 1 else WIDTH
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def fixed(figure: Figure) -> Figure:
    """The figure with its layout found once, for all files that it is written to."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def of_shares(ax: Axes, title: str, ylabel: str) -> None:
    """A panel whose y axis goes from 0 to 1."""
    ax.set_title(title)
    ax.set_ylabel(ylabel)
    ax.set_ylim(-0.02, 1.02)
    ax.grid(axis="y")


def beside(centre: float, names: Sequence[str], width: float) -> Iterator[tuple[float, str]]:
    """Places of things beside each other around a centre."""
    for i, name in enumerate(names):
        yield centre + (i - (len(names) - 1) / 2) * width, name


def present(series: Sequence[str], mappings: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """The series that occur, with their numbers; their look depends on these."""
    found = names_of(mappings)
    return [(i, name) for i, name in enumerate(series) if name in found]


def split_panels(panels: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Panels in figures that fit on a page, with the end of each figure's name."""
    names = list(panels)
    for i in range(0, len(names), MAX_PANELS):
        chosen = {name: panels[name] for name in names[i : i + MAX_PANELS]}
        yield "" if len(names) <= MAX_PANELS else f"-{i // MAX_PANELS + 1}", chosen


def categories(ax: Axes, names: Sequence[str]) -> None:
    """Names along the x axis, slanted where they would touch."""
    is_long = sum(map(len, names)) > 36 or len(names) > 12
    look = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    ax.set_xticks(range(len(names)), [shorten(name) for name in names], **look)
    ax.set_xlim(-0.5, len(names) - 0.5)


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above the panels, for which the figure grows, unless there is but one series."""
    labels = [shorten(str(handle.get_label()), 60) for handle in handles]
    room = 18 * figure.get_figwidth()  # letters in a line
    columns = max(1, min(len(handles), int(room // (max(map(len, labels)) + 7))))
    columns = len(handles) if sum(map(len, labels)) + 7 * len(labels) <= room else columns
    if len(handles) > 1:
        figure.set_figheight(figure.get_figheight() + 0.15 * math.ceil(len(handles) / columns) + 0.05)
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def names_of(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of several mappings, each once, in the order of their first."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def errors(bar: Bar) -> Float[np.ndarray, "2 1"] | None:
    """How far the interval reaches below and above the mean."""
    if bar.low is None or bar.high is None:
        return None
    return np.array([[max(0.0, bar.mean - bar.low)], [max(0.0, bar.high - bar.mean)]], np.float64)


# --- Files -----------------------------------------------------------------------------------------------------------


@drawing()
def to_svg(figure: Figure) -> bytes:
    """A figure for a page, without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def file_stem(name: str) -> str:
    """A name for a file; what LaTeX takes amiss becomes a dash."""
    return re.sub(r"[^\w+-]+", "-", name)


@drawing()
def write_figure(folder: Path, name: str, figure: Figure) -> set[Path]:
    """Writes NAME.pdf with embedded fonts and NAME.png with 300 dots an inch.

    Returns:
        Both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = file_stem(name)
    written = set()
    for ending, metadata in (("pdf", {"CreationDate": None, "Creator": None, "Producer": None}), ("png", {})):
        with atomic.replacing(folder / f"{name}.{ending}") as temporary:
            figure.savefig(temporary, format=ending, metadata=metadata)
        written.add(folder / f"{name}.{ending}")
    return written
