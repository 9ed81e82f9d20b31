"""200 damaged and unusual files in two class folders, none of which is a usable image.

``cd tests && python -m helpers.damaged FOLDER`` writes them, to try things by hand.
"""

import io
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"}


def make_damaged(root: Path, count: int = 200) -> set[str]:
    """Write the files; return their names relative to the root, as the stage is expected to list them."""
    damaged, special = root / "damaged", root / "odd"
    damaged.mkdir(parents=True)
    special.mkdir()
    names = {_make_special(special, name, make) for name, make in SPECIAL.items()} | _not_utf8(special)
    for name, make_content in CONTENTS.items():
        names.add(_write(damaged / name, make_content()))
    # The same bytes under two labels: neither label can be trusted.
    names |= {_write(folder / "twin.png", noise("PNG", seed=1)) for folder in (damaged, special)}
    number = 0
    while len(names) < count:
        suffix = list(FORMATS)[number % len(FORMATS)]
        content = noise(FORMATS[suffix], seed=number)
        # Never cut near the end: GIF and WebP would lose nothing but a trailer.
        cut = content[: int(len(content) * (0.05 + 0.8 * (number % 17) / 17))]
        names.add(_write(damaged / f"truncated_{number:03d}.{suffix}", cut))
        number += 1
    return names


def noise(kind: str, seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an encoded image of noise, which no format compresses well."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return saved(Image.fromarray(pixels), kind)


def saved(image: Image.Image, kind: str) -> bytes:
    """Return an encoded image."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a valid PNG of this size without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped_png(seed: int) -> bytes:
    """Return a PNG with flipped bytes in its middle third."""
    content = noise("PNG", seed)
    chosen, changed = random.Random(seed), bytearray(content)  # noqa: S311  (no secret)
    for _ in range(20):
        changed[chosen.randrange(len(content) // 3, 2 * len(content) // 3)] ^= 0xFF
    return bytes(changed)


CONTENTS: dict[str, Callable[[], bytes]] = {
    "empty.jpg": bytes,
    "empty": bytes,
    "zeros.png": lambda: bytes(1000),
    "text.jpg": lambda: b"this is no image\n",
    "page.jpeg": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "drawing.svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "archive.png": lambda: b"PK\x03\x04" + bytes(100),
    "paper.pdf": lambda: b"%PDF-1.7\n%%EOF\n",
    "program.eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "random.jpg": lambda: np.random.default_rng(0).bytes(5000),
    "signature.png": lambda: b"\x89PNG\r\n\x1a\n",
    "signature.jpg": lambda: b"\xff\xd8\xff",
    "signature.gif": lambda: b"GIF89a",
    "signature.webp": lambda: b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "signature.tif": lambda: b"II*\x00\x08\x00\x00\x00",
    "signature.bmp": lambda: b"BM" + bytes(12),
    "bomb.png": lambda: png_header(60000, 60000),
    "no_pixels.png": lambda: png_header(50, 50),
    "zero_wide.png": lambda: png_header(0, 50),
    "strip.png": lambda: noise("PNG", 0, (2100, 100)),
    "tower.png": lambda: noise("PNG", 0, (1, 21)),
    "float.tif": lambda: saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
    "negative.tif": lambda: saved(Image.fromarray(np.full((9, 9), -1, np.int32)), "TIFF"),
    "too_bright.tif": lambda: saved(Image.fromarray(np.full((9, 9), 65536, np.int32)), "TIFF"),
    "two\nlines.jpg": bytes,
    "ünïcödé 图片.jpg": bytes,
    f"{'long' * 60}.jpg": bytes,
} | {f"flipped_{i}.png": partial(flipped_png, i) for i in range(20)}


def _socket(path: Path) -> None:
    # A socket's path has at most 107 bytes, so it is bound by its name alone.
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(before)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "folder.jpg": Path.mkdir,
    "folder.PNG": Path.mkdir,
    "pipe.jpg": os.mkfifo,
    "socket.jpg": _socket,
    "dangling.jpg": lambda path: path.symlink_to("nowhere.jpg"),
    "self.jpg": lambda path: path.symlink_to(path.name),
    "there.jpg": lambda path: path.symlink_to("back.jpg"),
    "back.jpg": lambda path: path.symlink_to("there.jpg"),
    "device.jpg": lambda path: path.symlink_to("/dev/zero"),
    "null.jpg": lambda path: path.symlink_to("/dev/null"),
    "parent": lambda path: path.symlink_to(".."),
    "itself": lambda path: path.symlink_to("."),
}


def _make_special(folder: Path, name: str, make: Callable[[Path], None]) -> str:
    make(folder / name)
    return f"{folder.name}/{name}"


def _not_utf8(folder: Path) -> set[str]:
    raw = {b"caf\xe9.jpg": r"caf\xe9.jpg", b"\xff\xfe.png": r"\xff\xfe.png", b"half\xc3.png": r"half\xc3.png"}
    for i, name in enumerate(raw):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(noise("PNG", 500 + i))
    return {f"{folder.name}/{shown}" for shown in raw.values()}


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return f"{path.parent.name}/{path.name}"


if __name__ == "__main__":
    print(len(make_damaged(Path(sys.argv[1]))), "files")
