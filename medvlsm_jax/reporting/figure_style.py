"""How charts look: readable without colour vision, whatever the user's settings.

Colours are those of Okabe and Ito (Color Universal Design, 2008); hatches, markers and line styles say the same again.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import matplotlib.style
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#595959")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----")
MARKERS = "osD^vPX<"
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
GRID, INK = "#e4e4e4", "#333333"
MAX_LABEL = 40  # characters

STYLE: dict[str, Any] = {
    **{"font.family": "sans-serif", "font.sans-serif": "DejaVu Sans", "font.size": 7, "axes.titlesize": 7.5},
    **{"axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.edgecolor": INK},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5},
    **{"axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6, "legend.frameon": False},
    **{"hatch.linewidth": 0.5, "lines.linewidth": 1.1, "text.parse_math": False, "axes.titlelocation": "left"},
    **{"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "medvlsm_jax", "savefig.dpi": 300},
}

LOCK = threading.RLock()  # matplotlib's settings are of the whole process


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc says; a letter that the font lacks is drawn as a box."""
    with LOCK, matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def colour(i: int) -> str:
    """Of a series; with hatch and marker no two of the first 42 look the same."""
    return COLOURS[i % len(COLOURS)]


def hatch(i: int) -> str:
    """Of a series of areas."""
    return HATCHES[i % len(HATCHES)]


def marker(i: int) -> str:
    """Of a series of points."""
    return MARKERS[i % len(MARKERS)]


def linestyle(i: int) -> Literal["-", "--", "-.", ":"]:
    """Of a series of curves."""
    return LINES[i % len(LINES)]


def patch(i: int, name: str) -> Patch:
    """A series of areas in a legend."""
    return Patch(facecolor=colour(i), hatch=hatch(i), edgecolor=INK, linewidth=0.6, label=name)


def line(i: int, name: str, *, is_curve: bool = True) -> Line2D:
    """A series of curves, or of points, in a legend."""
    found = Line2D([], [], color=colour(i), marker=marker(i), markersize=4, linestyle=linestyle(i), label=name)
    if is_curve:
        found.set_markerfacecolor("white")
    else:
        found.set_linestyle("None")
    return found


def shorten(text: str, length: int = MAX_LABEL) -> str:
    """Text in one line of limited length."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
