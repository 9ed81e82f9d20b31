"""Every mode becomes the right RGB, and a bad image gets a reason."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import NOTE, BadImageError, ImageLimits, decode, header_size, to_rgb
from helpers.kinds import tiff


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


def test_the_limits_are_named_and_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    scan, line = encoded(Image.new("RGB", (30, 10))), encoded(Image.new("RGB", (60, 1)))
    with pytest.raises(
        BadImageError, match=r"300 pixels.* raise prepare\.max_pixels, for predict and serve --max-pixels"
    ):
        decode(scan)
    assert decode(scan, ImageLimits(max_pixels=300)).size == header_size(scan, ImageLimits(max_pixels=300)) == (30, 10)
    for lower in (299, 10):  # Pillow itself refuses more than 200
        with pytest.raises(BadImageError, match=r"pixels.* raise prepare\.max_pixels"):
            decode(scan, ImageLimits(max_pixels=lower))
    with pytest.raises(BadImageError, match=r"^15 x 10 pixels are more than 149: .* raise prepare\.max_pixels"):
        decode(encoded(Image.new("RGB", (15, 10))), ImageLimits(max_pixels=149))
    with pytest.raises(BadImageError, match=r"60 x 1 pixels: longer than 20 times .* raise prepare\.max_aspect_ratio"):
        decode(line)
    assert decode(line, ImageLimits(max_aspect_ratio=60)).size == (60, 1)
    with pytest.raises(BadImageError, match=r"longer than 59\.5 times"):
        header_size(line, ImageLimits(max_aspect_ratio=59.5))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_of_several_limits_keep_theirs_and_leave_pillows_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = encoded(Image.new("RGB", (30, 10)))

    def accepted(number: int) -> bool:
        try:
            decode(content, ImageLimits(max_pixels=(300, 299, 1000, 250)[number % 4]))
        except BadImageError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(accepted, range(400))) == [True, False, True, False] * 100
    assert Image.MAX_IMAGE_PIXELS == 100


GREY = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint16) * 3  # 0 to 204
COLOURS = np.stack([GREY, GREY // 2, GREY // 3], axis=2)


def deep_png(pixels: Any, colour: int) -> bytes:
    """Return a PNG with 16 bits a band, of which Pillow writes none but grey ones; colour 2: RGB, 4: grey and alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("content", "bits"),
    [
        (encoded(Image.fromarray(GREY * 16)), 12),
        (encoded(Image.fromarray(GREY * 4), "TIFF"), 10),
        (encoded(Image.fromarray(GREY)), 8),
        (tiff(GREY * 64, order=">"), 14),
        (tiff(GREY * 16, photometric=0), 12),
        (tiff((GREY * 16).astype(np.int16)), 12),
        (tiff((GREY * 16).astype(np.uint32)), 12),
        (tiff(GREY * 16, tags={281: [4095]}), 12),
        (tiff(COLOURS * 16, photometric=2), 12),
        (tiff(COLOURS * 16, photometric=2, order=">"), 12),
        (deep_png(COLOURS * 16, 2), 12),
        (deep_png(np.dstack([GREY * 16, np.full(GREY.shape, 65535)]), 4), 12),
        (b"P5 30 40 65535\n" + (GREY * 16).astype(">u2").tobytes(), 12),
        (encoded(Image.fromarray(GREY * 257)), None),
        (tiff(COLOURS * 257, photometric=2), None),
        (deep_png(COLOURS * 257, 2), None),
        (b"P5 30 40 4095\n" + (GREY * 16).astype(">u2").tobytes(), None),  # Pillow scales by the header's maximum
        (encoded(Image.fromarray(GREY.astype(np.uint8) // 16)), None),
        (encoded(Image.fromarray(GREY * 0)), None),
    ],
)
def test_few_bits_in_a_deep_file_are_noted(content: bytes, bits: int | None) -> None:
    note = decode(content).info.get(NOTE)
    assert note == (None if bits is None else ("few_bits", f"{bits} of 16"))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (GREY.astype(np.int16) * 12 - 1024, "signed 16-bit pixels from -1024 to 1424"),
        (GREY.astype(np.uint32) * 21_000_000, "unsigned 32-bit pixels from 0 to 4284000000"),
        (GREY.astype(np.int32) - 5, "signed 32-bit pixels from -5 to 199"),
        (GREY.astype(np.int8), "signed 8-bit values"),
        (GREY.astype(np.float32), "floating-point pixels from 0 to 204"),
        (np.full((9, 9), np.nan, np.float32), "floating-point pixels without a finite one"),
    ],
)
def test_values_that_have_no_white_are_called_by_their_type_and_range(pixels: Any, said: str) -> None:
    with pytest.raises(BadImageError, match=f"^{said}"):
        decode(tiff(pixels))


NOISE = np.random.default_rng(0).normal(120, 40, (64, 64)).clip(0, 255).astype(np.uint8)
RGB = np.dstack([NOISE, NOISE.T, NOISE // 2])
DISC = (np.hypot(*np.mgrid[-32:32, -32:32]) < 20).astype(np.uint8) * 255
SMOOTH = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)


@pytest.mark.parametrize("extra", [None, [1], [2], [999]])
def test_a_tiffs_last_band_that_is_no_transparency_is_refused(extra: list[int] | None) -> None:
    for pixels in (np.dstack([RGB, NOISE[::-1]]), np.dstack([RGB, NOISE[::-1]]).astype(np.uint16) * 257):
        if extra != [999] or pixels.dtype == np.uint8:
            with pytest.raises(BadImageError, match="its last band is no transparency"):
                decode(tiff(pixels, photometric=2, extra=extra))
    if extra != [999]:  # 12 bits of 16 in each band
        with pytest.raises(BadImageError, match="its last band is no transparency"):
            decode(tiff(np.dstack([RGB, NOISE]).astype(np.uint16) * 16, photometric=2, extra=extra))
    partly = np.where(DISC > 0, NOISE[::-1], 0)
    if extra != [1]:  # of colours multiplied with 0 nothing is left
        with pytest.raises(BadImageError, match="its last band is no transparency"):
            decode(tiff(np.dstack([RGB, partly]), photometric=2, extra=extra))
    cut_out = np.dstack([RGB * (DISC > 0)[..., None], partly]).astype(np.uint8)  # one colour where nothing is seen
    assert NOTE not in decode(tiff(cut_out, photometric=2, extra=extra)).info
    for mask in (DISC, SMOOTH, np.full_like(DISC, 255), np.full_like(DISC, 128), np.zeros_like(DISC)):
        assert NOTE not in decode(tiff(np.dstack([RGB, mask]), photometric=2, extra=extra)).info


def test_other_bands_are_noted() -> None:
    said = {
        tiff(np.dstack([RGB, NOISE]), photometric=2, extra=[0]): ("unused_bands", "1 of 4"),
        tiff(np.dstack([RGB, NOISE, NOISE]), photometric=2, extra=[0, 0]): ("unused_bands", "2 of 5"),
        encoded(Image.fromarray(np.dstack([RGB, NOISE]))): ("odd_transparency", "not a mask's values"),
        encoded(Image.fromarray(np.dstack([RGB, DISC]))): None,
        encoded(Image.fromarray(np.dstack([RGB, SMOOTH]))): None,
    }
    assert {content: decode(content).info.get(NOTE) for content in said} == said
    with pytest.raises(BadImageError, match="its last band is no transparency"):
        decode(tiff(np.dstack([NOISE, NOISE.T]), extra=[2]))
