"""Every mode becomes the right RGB, and a bad image gets a reason."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import BadImageError, decode, header_size, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(content: bytes) -> list[tuple[int, int, int]]:
    image = decode(content)
    assert image.mode == "RGB"
    return [tuple(int(value) for value in pixel) for pixel in np.asarray(image).reshape(-1, 3)]  # type: ignore[misc]


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def palette(*, transparent: int | bytes | None = None) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return encoded(image) if transparent is None else encoded(image, transparency=transparent)


def pixels(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


SIXTEEN = np.array([[0, 257, 32896, 65535]], np.uint16)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(pixels("RGB", (1, 2, 3))), [(1, 2, 3)]),
        (encoded(pixels("L", 0, 100, 255)), grey(0, 100, 255)),
        (encoded(pixels("1", 0, 255)), grey(0, 255)),
        (encoded(pixels("LA", (0, 255), (0, 0), (100, 51))), grey(0, 255, 224)),
        (
            encoded(pixels("RGBA", (255, 0, 0, 255), (9, 9, 9, 0), (255, 0, 0, 51))),
            [(255, 0, 0), (255,) * 3, (255, 204, 204)],
        ),
        (palette(), [(255, 0, 0), (0, 255, 0), (0, 0, 255)]),
        (palette(transparent=1), [(255, 0, 0), (255, 255, 255), (0, 0, 255)]),
        (palette(transparent=bytes([255, 0, 51])), [(255, 0, 0), (255, 255, 255), (204, 204, 255)]),
        (encoded(pixels("RGB", (1, 2, 3), (7, 8, 9)), transparency=(1, 2, 3)), [(255, 255, 255), (7, 8, 9)]),
        (encoded(Image.fromarray(SIXTEEN)), grey(0, 1, 128, 255)),
        (encoded(Image.fromarray(SIXTEEN), "TIFF"), grey(0, 1, 128, 255)),
        (encoded(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), grey(0, 1, 128, 255)),
        (
            encoded(pixels("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"),
            [(255,) * 3, (255, 0, 0), (0,) * 3],
        ),
        (encoded(pixels("LAB", (255, 128, 128), (0, 128, 128)), "TIFF"), None),
    ],
    ids=["RGB", "L", "1", "LA", "RGBA", "P", "P-index", "P-alpha", "RGB-key", "I;16png", "I;16tif", "I", "CMYK", "LAB"],
)
def test_mode(content: bytes, expected: list[tuple[int, int, int]] | None) -> None:
    if expected is None:  # through a colour profile, whose white is nearly white
        white, black = colours(content)
        assert min(white) > 250
        assert max(black) < 5
    else:
        assert colours(content) == expected


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "HSV", "YCbCr", "I;16B"])
def test_modes_that_few_files_have(mode: str) -> None:
    light: dict[str, Any] = {
        "La": (255, 255),
        "PA": (255, 255),
        "RGBa": (255,) * 4,
        "HSV": (0, 0, 255),
        "YCbCr": (255, 128, 128),
        "I;16B": 65535,
    }
    image = Image.new(mode, (2, 1), light[mode])
    if mode == "PA":
        image = pixels("PA", (1, 255), (0, 0))
        image.putpalette([0, 0, 0, 255, 255, 255])
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(image).getpixel((1, 0)) == (255, 255, 255)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = colours(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))[0]
    assert np.abs(np.subtract(red, (255, 0, 0))).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0] = 255
    # What a camera stores so that applying the orientation gives the upright image.
    undone = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.fromarray(np.ascontiguousarray(undone[orientation])), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), upright)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    assert colours(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0] == (255, 0, 0)


def test_large_images_are_read_without_a_warning_and_bombs_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(encoded(Image.new("RGB", (15, 10)))).size == (15, 10)
    with pytest.raises(BadImageError, match="bomb"):
        decode(encoded(Image.new("RGB", (21, 10))))


def test_float_pixels_are_bad() -> None:
    with pytest.raises(BadImageError, match="floating-point"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_the_size_is_the_headers() -> None:
    content = encoded(Image.new("RGB", (60, 40)))
    assert header_size(content) == header_size(content[:-20]) == (60, 40)
    for bad in (b"", b"?", encoded(Image.new("RGB", (2100, 100)))):
        with pytest.raises(BadImageError):
            header_size(bad)


def test_many_threads_decode_without_a_warning_and_leave_the_filters_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    before, content = list(warnings.filters), encoded(Image.new("RGB", (15, 10)))
    with ThreadPoolExecutor(8) as pool:
        assert {image.size for image in pool.map(decode, [content] * 400)} == {(15, 10)}
    assert list(warnings.filters) == before
