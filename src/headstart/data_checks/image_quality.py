"""Image quality: images that a model can learn little from, since they are far smaller than the others or blank."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TINY_FRACTION = 0.5
"""Of the side that the model sees: a smaller image is enlarged to more than four times its pixels."""
BLANK_CONTRAST = 3.0
"""Contrast in levels of 255. The lowest among 6,750 photographs of Imagenette was 7.3; a grey card photographed with
noise of 20 levels has 2."""


class ImageProblem(NamedTuple):
    """An image's row, its ``problem`` (``tiny`` or ``blank``), and its short side in pixels or its contrast."""

    row: int
    problem: str
    value: float


def find_image_problems(
    short_sides: NDArray[np.float64], contrasts: NDArray[np.floating], input_side: int
) -> list[ImageProblem]:
    """Find tiny and blank images.

    An image is tiny if its short side is below half of the side that the model sees and below half of the median too:
    where all images are small, none of them is a problem.

    Args:
        short_sides: float64 (n,), in pixels.
        contrasts: float (n,), as ``ImageInfo.contrast``.
        input_side: side that the model sees, in pixels.
    """
    tiny = short_sides < TINY_FRACTION * min(input_side, float(np.median(short_sides)))
    blank = contrasts < BLANK_CONTRAST
    return [
        *(ImageProblem(row, "tiny", int(short_sides[row])) for row in np.flatnonzero(tiny).tolist()),
        *(ImageProblem(row, "blank", round(float(contrasts[row]), 2)) for row in np.flatnonzero(blank).tolist()),
    ]
