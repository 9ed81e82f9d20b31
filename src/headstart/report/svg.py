"""The style of the report's charts: inline SVG that inherits its text colour and its font from the page."""

import re
import warnings
from collections.abc import Callable
from io import StringIO
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design", those that are visible on white and on black; dashes and markers
# distinguish the lines too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = "osD^vPX"
SPACING = 0.04
"""The least distance of a line's markers, in diagonals of the axes: hundreds of epochs would be hundreds of markers."""
INK = "#010203"
"""A placeholder for the page's text colour, light or dark."""
SIZE_INCHES, LEGEND_ROW_INCHES = (4.0, 2.7), 0.17
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlepad": 15,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}

ChartStyle = dict[str, Any]
"""Keyword arguments of matplotlib's ``plot``."""


class Chart(NamedTuple):
    """A chart, and the text alternative that describes it with its numbers."""

    svg: Markup
    label: str


def style(i: int) -> ChartStyle:
    """Return the style of the i-th line: its colour differs from the line before, after all colours its dashes too."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markevery": SPACING,
        "linestyle": DASHES[(i + i // len(COLOURS)) % len(DASHES)],
    }


def chart(name: str, x: str, y: str, draw: Callable[..., str], *data: Any) -> Chart:
    """Draw a chart with a label of the x axis and, above it, one of the y axis.

    The name is unique on the page, since the ids of the chart's elements are derived from it. ``draw`` is called with
    the matplotlib axes and ``data``, draws on the axes, and returns the text alternative.
    """
    with rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, so it does not matter whether matplotlib's font has the letters.
        warnings.filterwarnings("ignore", "Glyph")
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_title(y, loc="left")
        label = draw(axes, *data)
        if entries := len(axes.get_legend_handles_labels()[1]):
            figure.legend(loc="outside lower left", ncols=2)
            figure.set_size_inches(SIZE_INCHES[0], SIZE_INCHES[1] + LEGEND_ROW_INCHES * ((entries + 1) // 2))
        return Chart(_inline(figure), label)


def _inline(figure: Figure) -> Markup:
    """Return a figure as an SVG element without a size, ids or a font of its own."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*;", "", svg)
    return Markup(svg)  # noqa: S704  (matplotlib escapes its texts)
