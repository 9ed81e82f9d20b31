"""Files of rare kinds become the right pixels, and what is no image is called by its name."""

import numpy as np
import pytest

from headstart.images.decode import BadImageError, decode
from helpers.odd_images import READABLE, RED, UNUSABLE


@pytest.mark.parametrize("name", READABLE)
def test_rare_files_become_the_right_pixels(name: str) -> None:
    pixels = np.asarray(decode(READABLE[name]()), np.int64)
    assert pixels.shape[2] == 3
    assert np.abs(np.median(pixels, axis=(0, 1)) - RED).max() <= 12, pixels[0, 0]


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_image_is_called_by_its_name(name: str) -> None:
    make, reason = UNUSABLE[name]
    with pytest.raises(BadImageError, match=f"(?i){reason}") as caught:
        decode(make())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
