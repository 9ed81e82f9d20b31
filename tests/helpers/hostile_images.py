"""Files with image names that are damaged, unusual, or made to do harm; the same ones every time.

``cd tests && python -m helpers.hostile_images FOLDER [COUNT]`` writes them, to try things by hand.
"""

import io
import pickle
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.damaged import make_damaged, png_header, saved

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX")
EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch executed) (w) file\n"


def make_hostile_images(root: Path, count: int) -> None:
    """Write ``count`` files, links, pipes and folders with image names."""
    make_damaged(root)
    folder = root / "made"
    folder.mkdir()
    for name, make in HOSTILE.items():
        (folder / name).write_bytes(make())
    seeds = [_valid_image(kind) for kind in KINDS]
    for number in range(count - 200 - len(HOSTILE)):
        (folder / f"changed_{number:04d}.jpg").write_bytes(changed(seeds[number % len(seeds)], number))


def changed(content: bytes, number: int) -> bytes:
    """Flip, cut, repeat, insert or overwrite bytes, mostly in the headers."""
    chosen, result = random.Random(number), bytearray(content)  # noqa: S311  (no secret)
    for _ in range(chosen.choice([1, 3, 10, 40])):
        at = chosen.randrange(min(len(result), chosen.choice([40, 400, 10**6])))
        match chosen.randrange(5):
            case 0:
                result[at] ^= 1 << chosen.randrange(8)
            case 1:
                result[at : at + 4] = chosen.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
                )
            case 2:
                result[at : at + chosen.randrange(1, 60)] = b""
            case 3:
                result[at:at] = result[at : at + chosen.randrange(1, 200)]
            case _:
                result[at:at] = chosen.randbytes(chosen.randrange(1, 30))
        if not result:
            break
    return bytes(result)


def _valid_image(kind: str) -> bytes:
    pixels = np.random.default_rng(len(kind)).integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(pixels)
    return saved(image.quantize() if kind in {"GIF", "PCX"} else image, kind)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text_bomb() -> bytes:
    """Return a small PNG whose compressed text expands to 200 MiB."""
    content = saved(Image.new("RGB", (9, 9)), "PNG")
    packed = zlib.compress(bytes(200 * 2**20), 9)
    return content[:33] + _chunk(b"zTXt", b"a\0\0" + packed) + content[33:]


def _large_but_allowed() -> bytes:
    """Return a PNG of 170 million black pixels in 170 kB, just below Pillow's limit for a decompression bomb."""
    side = 13_000
    packer, packed = zlib.compressobj(9), b""
    for _ in range(side):
        packed += packer.compress(bytes(side + 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", packed + packer.flush()) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _many_frames() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("P", (9, 9), i % 256) for i in range(500)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0)
    return file.getvalue()


def _deep_exif() -> bytes:
    """Return a JPEG whose EXIF data points to itself."""
    ifd = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    return saved_with_exif(b"Exif\0\0" + ifd)


def saved_with_exif(exif: bytes) -> bytes:
    """Return a JPEG with these bytes as its EXIF data."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "JPEG", exif=exif)
    return file.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "pickle.jpg": lambda: pickle.dumps({"label": "cat"}),
    "script.png": lambda: b"#!/bin/sh\ntouch executed\n",
    "python.jpg": lambda: b"__import__('os').mkdir('executed')\n",
    "postscript.jpg": lambda: POSTSCRIPT,
    "postscript_in_dos.jpg": lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, 90) + bytes(22) + POSTSCRIPT,
    "svg_that_reads.png": lambda: b"<svg><image href='file:///etc/passwd' width='9' height='9'/></svg>",
    "text_bomb.png": _text_bomb,
    "large_but_allowed.png": _large_but_allowed,
    "wide_bomb.png": lambda: png_header(2**31 - 1, 2**31 - 1),
    "many_frames.gif": _many_frames,
    "exif_of_itself.jpg": _deep_exif,
    "exif_of_nothing.jpg": lambda: saved_with_exif(b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "\x1b[31mred\x07.jpg": bytes,
    "=cmd|' -C calc'!A0.jpg": bytes,
    "-out.jpg": bytes,
}


if __name__ == "__main__":
    make_hostile_images(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1000)
