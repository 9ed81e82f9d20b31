"""Every kind of file is called by its name, under any suffix, with what to do."""

import io

import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import BadImageError, decode
from headstart.images.kinds import HEAD_BYTES, image_format, recognise
from helpers.kinds import NO_IMAGES, UNREADABLE_IMAGES

Image.init()
READABLE = {"JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM", "JPEG2000", "ICO", "PCX", "SGI", "DDS", "XBM"}


@pytest.mark.parametrize("name", [*UNREADABLE_IMAGES, *NO_IMAGES])
def test_what_it_is_and_what_to_do(name: str) -> None:
    content, named = (UNREADABLE_IMAGES | NO_IMAGES)[name]
    with pytest.raises(BadImageError) as raised:
        decode(content)
    said = str(raised.value)
    assert said.startswith(named)
    assert ": " in said.removeprefix(named)
    assert "\n" not in said
    assert bool(image_format(content[:HEAD_BYTES])) == (name in UNREADABLE_IMAGES)


@pytest.mark.parametrize("kind", sorted(READABLE & Image.SAVE.keys()))
def test_what_pillow_reads_is_an_image(kind: str) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).convert("1" if kind == "XBM" else "RGB").save(file, kind)
    assert recognise(file.getvalue()) is None
    assert image_format(file.getvalue()[:HEAD_BYTES])
    assert decode(file.getvalue()).size == (32, 32)


def test_an_image_whose_header_is_text_is_one() -> None:
    cards = ["SIMPLE  =                    T", "BITPIX  =  8", "NAXIS   =  2", "NAXIS1  =  20", "NAXIS2  =  16", "END"]
    content = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(320)
    assert image_format(content[:HEAD_BYTES]) == "FITS"
    assert decode(content).size == (20, 16)


def test_what_is_unknown_is_not_guessed() -> None:
    for content in (b"", b"\0", b"\x01\x02", np.random.default_rng(0).bytes(3000)):
        assert image_format(content[:HEAD_BYTES]) is None
    with pytest.raises(BadImageError, match=r"^not an image that Pillow can read$"):
        decode(b"\x01\x02\x03")
    with pytest.raises(BadImageError, match=r"^the file is empty$"):
        decode(b"")
