"""Image files as programs, cameras and downloads leave them: valid ones of rare kinds, and what only looks like one.

Each maker returns a file's bytes; the image is mostly ``RED``, 32 x 24 pixels, so that a test knows what is right.
"""

import base64
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

RED = (200, 30, 40)
SIZE = (32, 24)


def image(mode: str = "RGB", colour: tuple[int, ...] = RED) -> Image.Image:
    """Return a plain image of a colour; other modes are converted from RGB."""
    return Image.new("RGB", SIZE, colour[:3]).convert(mode)


def encoded(content: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image in Pillow's format ``kind``."""
    file = io.BytesIO()
    content.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: NDArray[Any], bits: int, colour_type: int, *more: bytes) -> bytes:
    """Encode rows of packed samples as a PNG of this depth and colour type, with more chunks before the pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *SIZE, bits, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_png(*samples: int) -> bytes:
    """Return a PNG with 16 bits a sample: grey, grey and alpha, RGB or RGBA by how many samples there are."""
    pixels = np.broadcast_to(np.array([257 * sample for sample in samples], ">u2"), (SIZE[1], SIZE[0], len(samples)))
    return png(np.ascontiguousarray(pixels).reshape(SIZE[1], -1), 16, {1: 0, 2: 4, 3: 2, 4: 6}[len(samples)])


def interlaced_png() -> bytes:
    """Return a PNG in Adam7's seven passes."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b""
    for x, y, across, down in passes:
        columns, rows = len(range(x, SIZE[0], across)), len(range(y, SIZE[1], down))
        data += (b"\0" + bytes(RED) * columns) * rows
    header = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 1)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(bands: NDArray[Any], tags: dict[int, tuple[int, ...]], *, order: Literal["<", ">"] = "<") -> bytes:
    """Encode samples as an uncompressed TIFF; ``tags`` are further ones, of 16-bit values, or replace the usual."""
    samples = 1 if bands.ndim == 2 else bands.shape[-1]
    content = bands.astype(bands.dtype.newbyteorder(order)).tobytes()
    entries: dict[int, tuple[int, ...]] = {
        256: (bands.shape[1],), 257: (bands.shape[0],), 258: (8 * bands.dtype.itemsize,) * samples, 259: (1,),
        262: (2 if samples > 2 else 1,), 273: (8,), 277: (samples,), 278: (bands.shape[0],), 279: (len(content),),
    } | tags  # fmt: skip
    out, extra = (b"II*\0" if order == "<" else b"MM\0*"), b""
    at = 8 + len(content)
    directory = struct.pack(order + "H", len(entries))
    extra_at = at + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        kind = "I" if max(values) > 65535 else "H"
        packed = struct.pack(order + kind * len(values), *values)
        if len(packed) > 4:
            value, extra = struct.pack(order + "I", extra_at + len(extra)), extra + packed
        else:
            value = packed.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, 4 if kind == "I" else 3, len(values)) + value
    return out + struct.pack(order + "I", at) + content + directory + bytes(4) + extra


def plain(*samples: float, dtype: Any = np.uint8) -> NDArray[Any]:
    """Return an array of a colour, (height, width, samples)."""
    return np.broadcast_to(np.array(samples, dtype), (SIZE[1], SIZE[0], len(samples)))


def bmp32(alpha: int, *, mask: bool) -> bytes:
    """Return a BMP of 32 bits a pixel, its fourth byte ``alpha``; with ``mask`` the header says that it is one."""
    pixels = bytes((*RED[::-1], alpha)) * (SIZE[0] * SIZE[1])
    if mask:
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        header = struct.pack("<IiiHHIIiiII", 108, *SIZE, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + bytes(52)
    else:
        header = struct.pack("<IiiHHIIiiII", 40, *SIZE, 1, 32, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def bmp565() -> bytes:
    """Return a BMP of 16 bits a pixel."""
    value = (RED[0] >> 3) << 11 | (RED[1] >> 2) << 5 | RED[2] >> 3
    pixels = struct.pack("<H", value) * (SIZE[0] * SIZE[1])
    header = struct.pack("<IiiHHIIiiII", 40, *SIZE, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def tga32(alpha: int, alpha_bits: int) -> bytes:
    """Return a TGA of 32 bits a pixel whose header says how many of them are alpha."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, *SIZE, 32, 0x20 | alpha_bits)
    return header + bytes((*RED[::-1], alpha)) * (SIZE[0] * SIZE[1])


def exif(orientation: Any, kind: int = 3, count: int = 1) -> bytes:
    """Return a JPEG whose EXIF data has this orientation."""
    value = orientation if isinstance(orientation, bytes) else struct.pack("<H", orientation).ljust(4, b"\0")
    ifd = b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, count) + value + bytes(4)
    return encoded(image(), "JPEG", exif=b"Exif\0\0" + ifd)


def animated(kind: str, **options: Any) -> bytes:
    """Return frames of which the first is red and the second green."""
    return encoded(image(), kind, save_all=True, append_images=[Image.new("RGB", SIZE, (0, 255, 0))], **options)


def zipped(name: str, content: bytes) -> bytes:
    """Return an archive with one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


JPEG = encoded(image(), "JPEG", quality=95)
PNG = encoded(image(), "PNG")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

READABLE: dict[str, Callable[[], bytes]] = {
    "grey as RGB JPEG, no suffix": lambda: JPEG,
    "progressive JPEG": lambda: encoded(image(), "JPEG", progressive=True, quality=95),
    "JPEG 4:1:1": lambda: encoded(image(), "JPEG", subsampling="4:1:1", quality=95),
    "CMYK JPEG as Photoshop writes it": lambda: encoded(image("CMYK"), "JPEG", quality=95),
    "JPEG with a zip behind it": lambda: JPEG + zipped("a.txt", b"a"),
    "JPEG with a newline behind it": lambda: JPEG + b"\r\n",
    "JPEG with a broken ICC profile": lambda: encoded(image(), "JPEG", quality=95, icc_profile=bytes(999)),
    "JPEG with an ICC profile": lambda: encoded(image(), "JPEG", quality=95, icc_profile=SRGB),
    "JPEG with a comment that is no text": lambda: encoded(image(), "JPEG", quality=95, comment=bytes(range(256))),
    "JPEG with orientation 0": lambda: exif(0),
    "JPEG with orientation 9": lambda: exif(9),
    "JPEG with orientation 65535": lambda: exif(65535),
    "JPEG with an orientation of text": lambda: exif(b"6\0\0\0", kind=2, count=2),
    "JPEG with an orientation of two numbers": lambda: exif(struct.pack("<HH", 1, 6), count=2),
    "two images in one (MPO)": lambda: animated("MPO", quality=95),
    "PNG of 16 bits RGB": lambda: deep_png(*RED),
    "PNG of 16 bits RGBA": lambda: deep_png(*RED, 255),
    "interlaced PNG": interlaced_png,
    "PNG with a palette": lambda: encoded(image().quantize(2), "PNG"),
    "PNG with a palette of one colour": lambda: encoded(image().quantize(1), "PNG"),
    "PNG with a transparent colour that no pixel has": lambda: encoded(image(), "PNG", transparency=(1, 2, 3)),
    "PNG with gamma": lambda: png(plain(*RED).reshape(SIZE[1], -1), 8, 2, chunk(b"gAMA", struct.pack(">I", 45455))),
    "PNG with an unknown chunk": lambda: png(plain(*RED).reshape(SIZE[1], -1), 8, 2, chunk(b"abCd", b"x" * 99)),
    "PNG with garbage behind it": lambda: PNG + b"garbage" * 9,
    "animated PNG": lambda: animated("PNG"),
    "animated GIF": lambda: animated("GIF"),
    "animated WebP": lambda: animated("WEBP", lossless=True),
    "animated AVIF": lambda: animated("AVIF", quality=95),
    "lossless WebP": lambda: encoded(image(), "WEBP", lossless=True),
    "WebP with opaque alpha": lambda: encoded(image("RGBA"), "WEBP", lossless=True),
    "BMP of 16 bits": bmp565,
    "BMP of 32 bits, the fourth 0": lambda: bmp32(0, mask=False),
    "BMP of 32 bits, the fourth 255": lambda: bmp32(255, mask=False),
    "BMP of 32 bits, alpha by its header": lambda: bmp32(255, mask=True),
    "BMP with a palette": lambda: encoded(image().quantize(2), "BMP"),
    "TGA of 32 bits without alpha": lambda: tga32(0, 0),
    "TGA with opaque alpha": lambda: tga32(255, 8),
    "TGA run length encoded": lambda: encoded(image(), "TGA", compression="tga_rle"),
    "TIFF, LZW": lambda: encoded(image(), "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": lambda: encoded(image(), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, JPEG": lambda: encoded(image(), "TIFF", compression="jpeg", quality=95),
    "TIFF of two pages": lambda: animated("TIFF"),
    "TIFF of CMYK": lambda: encoded(image("CMYK"), "TIFF"),
    "TIFF with a palette": lambda: encoded(image().quantize(2), "TIFF"),
    "TIFF, big-endian": lambda: tiff(plain(*RED), {}, order=">"),
    "TIFF of five bands": lambda: tiff(plain(*RED, 7, 8), {338: (0, 0)}),
    "BigTIFF": lambda: encoded(image(), "TIFF", big_tiff=True),
    "TIFF with an alpha that its tag names": lambda: tiff(plain(*RED, 255), {338: (2,)}),
    "JPEG 2000": lambda: encoded(image(), "JPEG2000"),
    "JPEG 2000 codestream": lambda: encoded(image(), "JPEG2000", no_jp2=True),
    "ICO": lambda: encoded(image("RGBA").resize((32, 32)), "ICO"),
    "PPM": lambda: encoded(image(), "PPM"),
    "PPM as text": lambda: f"P3\n# by hand\n{SIZE[0]} {SIZE[1]}\n255\n".encode() + b"200 30 40\n" * (SIZE[0] * SIZE[1]),
    "PPM of 16 bits": lambda: (
        f"P6 {SIZE[0]} {SIZE[1]} 65535\n".encode() + struct.pack(">HHH", *(257 * c for c in RED)) * (SIZE[0] * SIZE[1])
    ),
    "PCX": lambda: encoded(image(), "PCX"),
    "SGI": lambda: encoded(image(), "SGI"),
    "DDS": lambda: encoded(image(), "DDS"),
}
"""Files that must become an image that is ``RED``."""

UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG packed by gzip": (lambda: gzip.compress(JPEG), "archive"),
    "JPEG in base64": (lambda: base64.b64encode(JPEG), "text"),
    "JPEG as a data URI": (lambda: b"data:image/jpeg;base64," + base64.b64encode(JPEG), "text"),
    "JPEG behind its HTTP headers": (
        lambda: b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG,
        "answer",
    ),
    "JPEG that lost its first byte": (lambda: JPEG[1:], "not an image|damaged"),
    "JPEG read as text (UTF-8)": (lambda: JPEG.decode("latin-1").encode(), "not an image|damaged|text"),
    "PNG whose line ends were converted": (lambda: PNG.replace(b"\r\n", b"\n"), "not an image|damaged|line ends"),
    "one byte": (lambda: b"\0", "not an image|damaged|zero"),
    "a newline": (lambda: b"\n", "not an image|text"),
    "JSON answer": (lambda: b'{"error": "not found"}', "JSON|text"),
    "XML of a bucket": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "answer"),
    "pointer of Git LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "LFS",
    ),
    "TIFF of 32-bit floats": (lambda: tiff(plain(0.5, dtype=np.float32)[..., 0], {339: (3,)}), "float"),
    "TIFF of 64-bit floats": (lambda: tiff(plain(0.5, dtype=np.float64)[..., 0], {339: (3,)}), "float|TIFF"),
    "NumPy array": (lambda: b"\x93NUMPY\x01\x00" + bytes(200), "NumPy"),
    "video": (lambda: b"\x00\x00\x00\x20ftypisom" + bytes(200), "video|MP4"),
    "QuickTime": (lambda: b"\x00\x00\x00\x14ftypqt  " + bytes(200), "video|QuickTime|MOV"),
    "Matroska": (lambda: b"\x1aE\xdf\xa3" + bytes(200), "video|Matroska|WebM"),
    "Word document": (lambda: zipped("word/document.xml", b"<x/>"), "archive|zip|document"),
    "RAR": (lambda: b"Rar!\x1a\x07\x01\x00" + bytes(99), "archive|RAR"),
    "sound": (lambda: b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(99), "sound|WAV|not an image"),
}
"""Files that are no usable image: a maker, and a pattern for what the reason must say."""
