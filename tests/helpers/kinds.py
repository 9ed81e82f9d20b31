"""Files of many kinds: what people have beside their images, or instead of them, and TIFFs that Pillow never writes."""

import gzip
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def tiff(
    pixels: NDArray[Any],
    *,
    photometric: int = 1,
    extra: Sequence[int] | None = None,
    compression: int = 1,
    tags: Mapping[int, Sequence[int] | bytes] | None = None,
    order: Literal["<", ">"] = "<",
) -> bytes:
    """Return a TIFF of one strip, of an array (height, width[, bands]) of any type; further ``tags`` by number.

    Tags are given as 16-bit numbers, or as bytes: text below 2**15, else plain bytes. ``photometric`` is 1 for grey, 2
    for RGB; ``extra`` are the values of ExtraSamples.
    """
    height, width, bands = (*pixels.shape, 1)[:3]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries: dict[int, Sequence[int] | bytes] = {
        256: [width], 257: [height], 258: [8 * pixels.itemsize] * bands, 259: [compression], 262: [photometric],
        273: [0], 277: [bands], 278: [height], 279: [len(data)], 339: [kind] * bands,
    }  # fmt: skip
    entries |= {338: extra} if extra is not None else {}
    entries |= tags or {}
    wide = {256, 257, 273, 278, 279}
    fields = {
        tag: value if isinstance(value, bytes) else b"".join(struct.pack(order + "HI"[tag in wide], v) for v in value)
        for tag, value in sorted(entries.items())
    }
    after = 8 + 2 + 12 * len(fields) + 4
    start = after + sum(len(field) for field in fields.values() if len(field) > 4)
    fields[273] = struct.pack(order + "I", start)
    directory, values = struct.pack(order + "H", len(fields)), b""
    for tag, field in fields.items():
        code, size = (1 + (tag < 2**15), 1) if isinstance(entries[tag], bytes) else ((4, 4) if tag in wide else (3, 2))
        place = field.ljust(4, b"\0") if len(field) <= 4 else struct.pack(order + "I", after + len(values))
        values += field if len(field) > 4 else b""
        directory += struct.pack(order + "HHI", tag, code, len(field) // size) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + directory + bytes(4) + values + data


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content + bytes(100)


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(9))
    return file.getvalue()


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.zeros(9))
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


PREVIEW = np.full((12, 16, 3), 99, np.uint8)
# Those that show an image: a name, and how the message about it begins.
UNREADABLE_IMAGES: dict[str, tuple[bytes, str]] = {
    "a.jxl": (b"\xff\x0a" + bytes(range(100)), "JPEG XL"),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
    "slice": (bytes(128) + b"DICM\x02\0\0\0UL", "DICOM"),
    "a.npy": (_npy(), "NumPy array"),
    "a.npz": (_npz(), "NumPy archive"),
    "a.cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(200), "camera raw (Canon CR2)"),
    "a.cr3": (_box(b"ftyp", b"crx \0\0\0\1crx isom"), "camera raw (Canon CR3)"),
    "a.nef": (tiff(PREVIEW, photometric=2, tags={254: [1], 271: b"NIKON CORPORATION\0"}), "camera raw (NIKON CORP"),
    "a.arw": (tiff(PREVIEW, photometric=2, tags={254: [1], 271: b"SONY\0"}), "camera raw (SONY)"),
    "a.dng": (tiff(PREVIEW, photometric=2, tags={254: [1], 50706: b"\1\4\0\0"}), "camera raw (DNG)"),
    "b.dng": (tiff(PREVIEW[..., 0], photometric=32803, tags={50706: b"\1\4\0\0"}), "camera raw (DNG)"),
    "a.crw": (b"II\x1a\0\0\0HEAPCCDR" + bytes(99), "camera raw (Canon CRW)"),
    "a.iiq": (b"II*\0\0\0\0\0IIII" + bytes(99), "camera raw (Phase One IIQ)"),
    "a.jxr": (b"II\xbc\1\x20\0\0\0", "JPEG XR"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201" + bytes(100), "camera raw (Fujifilm RAF)"),
    "a.orf": (b"IIRO\x08\0\0\0" + bytes(100), "camera raw (Olympus ORF)"),
    "a.rw2": (b"IIU\0\x18\0\0\0" + bytes(100), "camera raw (Panasonic RW2)"),
    "a.exr": (b"\x76\x2f\x31\x01\x02\0\0\0", "OpenEXR"),
    "a.hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Radiance HDR"),
    "lerc": (tiff(PREVIEW, photometric=2, compression=34887), "a TIFF of 8-bit unsigned values in 3 band(s), compress"),
    "bands": (tiff(np.zeros((9, 9, 13), np.uint16)), "a TIFF of 16-bit unsigned values in 13 band(s)"),
    "double": (tiff(np.zeros((9, 9))), "a TIFF of 64-bit floating-point values in 1 band(s)"),
    "broken": (_box(b"ftyp", b"avif\0\0\0\0avifmif1"), "AVIF, "),
}
# Those that do not.
NO_IMAGES: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "annex": (b"/annex/objects/SHA256E-s3--f5.jpg\n", "git-annex pointer"),
    "a.jpg.dvc": (b"outs:\n- md5: 1234\n  size: 10\n  path: a.jpg\n", "DVC pointer"),
    "login": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head>", "HTML page"),
    "denied": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>', "server's answer"),
    "a.xml": (b"<annotation><folder>x</folder></annotation>", "XML"),
    "a.json": (b'{"error": "not found"}', "JSON"),
    "a.txt": ("Größe und Farbe\n".encode(), "text"),
    "utf16.txt": ("words".encode("utf-16"), "text"),
    "a.b64": (b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgG", "base64 text"),
    "a.svg": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "a.pdf": (b"%PDF-1.7\n", "PDF"),
    "zeros": (bytes(5000), "zero bytes"),
    "a.gz": (gzip.compress(b"image"), "archive"),
    "a.zip": (_zip(), "zip archive or office document"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c\0\x04", "archive"),
    "a.tar": (b"a.jpg".ljust(257, b"\0") + b"ustar\0", "archive"),
    "a.mp4": (_box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41"), "video"),
    "a.mov": (_box(b"ftyp", b"qt  \0\0\0\0qt  "), "video"),
    "a.nii": (struct.pack("<i", 348).ljust(344, b"\0") + b"n+1\0", "NIfTI"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 or netCDF"),
    "a.mat": (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", "MATLAB file"),
    "a.nd2": (b"\xda\xce\xbe\x0a" + bytes(50), "Nikon ND2"),
    "a.icloud": (b"bplist00\xd3\1\2", "iCloud placeholder or other property list"),
    "a.mangled": (b"\x89PNG\r\n\x1a\n".decode(errors="replace").encode(), "binary file that was saved as text"),
    "a.pkl": (b"\x80\4\x95" + bytes(50), "Python pickle"),
    "a.parquet": (b"PAR1" + bytes(99), "Parquet"),
    "double.bin": (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "macOS AppleDouble"),
    "a.lnk": (b"L\0\0\0\x01\x14\x02\0" + bytes(50), "Windows shortcut"),
    "a.url": (b"[InternetShortcut]\r\nURL=http://x\r\n", "web shortcut"),
}
