"""HEIC, by the extra heic: the right way up, on many threads, within the limits, and refused where it is not wanted."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import BadImageError, ImageLimits, decode, header_size
from headstart.images.kinds import HEIC, image_format, recognise

# The upper left quarter is red, the upper right one green, the others black.
QUARTERS = np.zeros((64, 96, 3), np.uint8)
QUARTERS[:32, :48, 0] = QUARTERS[:32, 48:, 1] = 255


def heic(*, orientation: int | None = None, size: tuple[int, int] = (96, 64)) -> bytes:
    plugin = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    plugin.from_pillow(Image.fromarray(QUARTERS).resize(size)).save(file, quality=90, exif=exif.tobytes())
    return file.getvalue()


def corners(image: Image.Image) -> str:
    """Return the colours of the corners, r, g or k for black: upper left, upper right, lower left, lower right."""
    pixels = np.asarray(image)[[5, 5, -5, -5], [5, -5, 5, -5]]
    return "".join("r" if red > 128 else "g" if green > 128 else "k" for red, green, _ in pixels.tolist())


@pytest.mark.parametrize(
    ("orientation", "expected"), [(None, "rgkk"), (1, "rgkk"), (2, "grkk"), (3, "kkgr"), (6, "krkg"), (8, "gkrk")]
)
def test_it_is_turned_once(orientation: int | None, expected: str) -> None:
    """The encoder turns the EXIF orientation into the transformation that a decoder applies, as iPhones do."""
    image = decode(heic(orientation=orientation))
    assert image.size == ((64, 96) if orientation in (6, 8) else (96, 64))
    assert corners(image) == expected


def test_threads_decode_it_alike() -> None:
    content = heic(orientation=6)
    expected = np.asarray(decode(content))
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(np.asarray(image), expected) for image in pool.map(decode, [content] * 40))


def test_the_limits_are_its_too() -> None:
    content = heic()
    assert header_size(content) == (96, 64)
    assert recognise(content) is HEIC
    assert image_format(content) == "HEIC"
    with pytest.raises(BadImageError, match=r"^96 x 64 pixels are more than 6000"):
        decode(content, ImageLimits(max_pixels=6000))
    with pytest.raises(BadImageError, match="longer than 20 times"):
        decode(heic(size=(1408, 64)))
    with pytest.raises(BadImageError, match=r"^damaged: "):
        decode(content[:400])
    with pytest.raises(BadImageError, match=r"^damaged: [^\n]*\Z"):
        decode(content[: len(content) // 2])
    with pytest.raises(BadImageError, match="start the service with --heic"):
        decode(content, ImageLimits(heic=False))


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pillow_heif", "pillow_heif.as_plugin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadImageError, match=r"^HEIC: `pip install .*headstart\[heic\].*` reads it, or convert"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
