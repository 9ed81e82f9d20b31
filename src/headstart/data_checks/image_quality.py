"""Images that a model can learn little from: far smaller than the others, or blank."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TINY = 0.5
"""Of the side that the model sees: below it an image is enlarged to more than four times its pixels."""
BLANK = 3.0
"""Contrast in levels of 255. The least among 6,750 photographs of Imagenette was 7.3; a grey card photographed with a
noise of 20 levels has 2."""


class OddImage(NamedTuple):
    """An image's row, its ``problem`` (``tiny`` or ``blank``), and its short side in pixels or its contrast."""

    row: int
    problem: str
    value: float


def find_odd_images(short_sides: NDArray[np.float64], contrasts: NDArray[np.floating], seen: int) -> list[OddImage]:
    """Find tiny and blank images.

    Tiny is what is below half of the side that the model sees, and below half of the median too: where all images are
    small that is how the data are, and no finding.

    Args:
        short_sides: float64 (n,), in pixels.
        contrasts: float (n,), as ``Look.contrast``.
        seen: side that the model sees, in pixels.
    """
    tiny = short_sides < TINY * min(seen, float(np.median(short_sides)))
    blank = contrasts < BLANK
    return [
        *(OddImage(row, "tiny", int(short_sides[row])) for row in np.flatnonzero(tiny).tolist()),
        *(OddImage(row, "blank", round(float(contrasts[row]), 2)) for row in np.flatnonzero(blank).tolist()),
    ]
