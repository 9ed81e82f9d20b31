"""The studies' figures: SVG on white, in colours that the colour-blind tell apart, the same bytes each time."""

from pathlib import Path
from typing import TYPE_CHECKING

from headstart.core.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design".
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def two_panels() -> "tuple[Figure, Axes, Axes]":
    """Return a figure with two panels side by side, bare of frames, with a faint grid."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (slow, and only needed to draw)

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for panel in (left, right):
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, left, right


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as SVG, without a date and with the same element names from run to run."""
    from matplotlib import rc_context  # noqa: PLC0415

    with atomic_write(path) as partial, rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(partial, format="svg", metadata={"Date": None})
