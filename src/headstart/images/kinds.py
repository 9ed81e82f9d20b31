"""What a file is, by its first bytes: formats that are no images, or that Pillow can't read, with what to do.

Sources of the signatures: each format's specification, and the tables of file(1).
"""

import codecs
import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

HEAD_BYTES = 1024
"""What ``recognise`` looks at."""


class Kind(NamedTuple):
    """A kind of file: its name, what its owner should do, and whether it shows an image."""

    name: str
    advice: str
    is_image: bool = False

    def __str__(self) -> str:
        return f"{self.name}, not an image that Pillow can read: {self.advice}"


_CONVERT = "convert it to JPEG or PNG"
_FETCH = "the download or copy failed: fetch the file again"
_REFETCH = "remove it, or fetch the image again"
_RAW = "develop it to JPEG or 8-bit TIFF"
_PAGE = "save its images as JPEG or PNG"
_ARRAY = "save its images as PNG or TIFF"
_REMOVE = "remove it"
_TEXT = Kind("text", _REFETCH)
_ARCHIVE, _AUDIO = Kind("archive", "unpack it"), Kind("audio", _REMOVE)
_VIDEO = Kind("video", "save its frames as JPEG")

_DEPTH = "prepare.channels: auto, or their number, keeps its bands at their own depth"

DICOM = Kind("DICOM", _DEPTH, is_image=True)
NUMPY_ARCHIVE = Kind("NumPy archive", _DEPTH, is_image=True)
HEIC = Kind("HEIC", _CONVERT, is_image=True)

# The place of the signature, the signature, the kind. The first that matches decides.
_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\x0a", Kind("JPEG XL", _CONVERT, is_image=True)),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", Kind("JPEG XL", _CONVERT, is_image=True)),
    (128, b"DICM", DICOM),
    # Without the preamble: the first element, in either way of writing it.
    *((0, group + element + vr, DICOM) for group, element, vr in (
        (b"\x02\0", b"\0\0", b"UL"), (b"\x02\0", b"\0\0", b"\x04\0"), (b"\x02\0", b"\x01\0", b"OB"),
        (b"\x02\0", b"\x02\0", b"UI"), (b"\x02\0", b"\x10\0", b"UI"), (b"\x08\0", b"\0\0", b"UL"),
        (b"\x08\0", b"\0\0", b"\x04\0\0\0"), (b"\x08\0", b"\x01\0", b"UL"), (b"\x08\0", b"\x05\0", b"CS"),
        (b"\x08\0", b"\x05\0", b"\x0a\0\0\0"), (b"\x08\0", b"\x08\0", b"CS"), (b"\x08\0", b"\x16\0", b"UI"),
        (b"\x08\0", b"\x16\0", b"\x1a\0\0\0"), (b"\x08\0", b"\x18\0", b"UI"),
    )),
    (8, b"CR\x02", Kind("camera raw (Canon CR2)", _RAW, is_image=True)),
    (0, b"FUJIFILMCCD-RAW", Kind("camera raw (Fujifilm RAF)", _RAW, is_image=True)),
    *((0, start, Kind("camera raw (Olympus ORF)", _RAW, is_image=True)) for start in (b"IIRO", b"IIRS", b"MMOR")),
    (0, b"IIU\0", Kind("camera raw (Panasonic RW2)", _RAW, is_image=True)),
    (6, b"HEAPCCDR", Kind("camera raw (Canon CRW)", _RAW, is_image=True)),
    (8, b"IIII", Kind("camera raw (Phase One IIQ)", _RAW, is_image=True)),
    (0, b"FOVb", Kind("camera raw (Sigma X3F)", _RAW, is_image=True)),
    (0, b"\0MRM", Kind("camera raw (Minolta MRW)", _RAW, is_image=True)),
    (0, b"\x76\x2f\x31\x01", Kind("OpenEXR", _CONVERT, is_image=True)),
    (0, b"#?RADIANCE", Kind("Radiance HDR", _CONVERT, is_image=True)),
    (0, b"#?RGBE", Kind("Radiance HDR", _CONVERT, is_image=True)),
    (0, b"II\xbc", Kind("JPEG XR", _CONVERT, is_image=True)),
    (0, b"BPG\xfb", Kind("BPG", _CONVERT, is_image=True)),
    (0, b"gimp xcf", Kind("GIMP XCF", _CONVERT, is_image=True)),
    (0, b"AT&TFORM", Kind("DjVu", _PAGE)),
    (0, b"%PDF-", Kind("PDF", _PAGE)),
    (0, b"\xd7\xcd\xc6\x9a", Kind("Windows metafile", _CONVERT)),
    (40, b" EMF", Kind("Windows metafile", _CONVERT)),
    (0, b"%!PS", Kind("PostScript", _CONVERT)),
    (0, b"\xc5\xd0\xd3\xc6", Kind("PostScript", _CONVERT)),
    *((0, start, _VIDEO) for start in (b"\x1a\x45\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"FLV\x01")),
    (8, b"AVI LIST", _VIDEO),
    *((0, start, _AUDIO) for start in (b"ID3", b"OggS", b"fLaC")),
    (8, b"WAVE", _AUDIO),
    (0, b"PK\x03\x04", Kind("zip archive or office document", "unpack it")),
    *((0, start, _ARCHIVE) for start in (b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ\0")),
    *((at, start, _ARCHIVE) for at, start in ((0, b"\x28\xb5\x2f\xfd"), (257, b"ustar"))),
    (0, b"\x89HDF\r\n\x1a\n", Kind("HDF5 or netCDF", _ARRAY)),
    *((0, b"CDF" + bytes([version]), Kind("netCDF", _ARRAY)) for version in (1, 2, 5)),
    (0, b"GRIB", Kind("GRIB", _ARRAY)),
    (0, b"BUFR", Kind("BUFR", _ARRAY)),
    (0, b"\x93NUMPY", Kind("NumPy array", _DEPTH, is_image=True)),
    (0, b"MATLAB ", Kind("MATLAB file", _ARRAY)),
    (344, b"n+1\0", Kind("NIfTI", _ARRAY)),
    (344, b"ni1\0", Kind("NIfTI", _ARRAY)),
    (208, b"MAP ", Kind("MRC", _ARRAY)),
    (0, b"NRRD000", Kind("NRRD", _ARRAY)),
    (0, b"ZISRAWFILE", Kind("Zeiss CZI", _ARRAY)),
    (0, b"\xda\xce\xbe\x0a", Kind("Nikon ND2", _ARRAY)),
    (0, b"bplist00", Kind("iCloud placeholder or other property list", "download the file that it stands for")),
    (0, b"\xef\xbf\xbd", Kind("binary file that was saved as text", _FETCH)),
    (0, b"PAR1", Kind("Parquet", "write its images as files")),
    (0, b"ARROW1", Kind("Arrow", "write its images as files")),
    *((0, b"\x80" + bytes([version]) + b"\x95", Kind("Python pickle", _REMOVE)) for version in (4, 5)),
    (0, b"SQLite format 3", Kind("SQLite", "write its images as files")),
    *((0, b"\0\x05\x16" + last, Kind("macOS AppleDouble", _REMOVE)) for last in (b"\x07", b"\0")),
    (0, b"L\0\0\0\x01\x14\x02\0", Kind("Windows shortcut", "copy the file that it points to")),
    (0, b"[InternetShortcut]", Kind("web shortcut", "download what it points to")),
    (0, b"MZ", Kind("program", _REMOVE)),
    (0, b"\x7fELF", Kind("program", _REMOVE)),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("office document", _PAGE)),
    (0, b"version https://git-lfs.github.com/", Kind("Git LFS pointer", "run `git lfs pull`")),
    (0, b"HTTP/1.", Kind("server's answer", _FETCH)),
    (0, b"/annex/objects/", Kind("git-annex pointer", "run `git annex get`")),
)  # fmt: skip

# Of text, without a byte order mark and blanks at its start.
_TEXTS: tuple[tuple[str, Kind], ...] = (
    (r"(\.\./)*\.git/annex/objects/", Kind("git-annex pointer", "run `git annex get`")),
    (r"(md5: \w+\n)?(outs|deps):\n- (md5|etag|path|hash)", Kind("DVC pointer", "run `dvc pull`")),
    (r"<svg|<\?xml[\s\S]*<svg", Kind("SVG", "draw it as PNG")),
    (r"(?i)<!doctype html|<html|<head|<body|<script|<br", Kind("HTML page", _FETCH)),
    (r"(?i)<\?xml[\s\S]*<error", Kind("server's answer", _FETCH)),
    (r"<\?xml|<\w+>", Kind("XML", _REFETCH)),
    (r'[{\[]\s*["{\[\d\]}]', Kind("JSON", _REFETCH)),
    (r"data:image/|/9j/4|iVBORw0KGgo|R0lGOD|UklGR", Kind("base64 text", "decode it to a file")),
)
# The text formats of images that Pillow reads.
_TEXT_IMAGES = re.compile(rb"P[1-7fF]\s|/\* XPM \*/|\s*#define \w+_width|Image type:|SIMPLE  =")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def recognise(content: bytes) -> Kind | None:
    """Recognise what a file is by its first bytes; None where Pillow may read it, or nothing is known."""
    head = content[:HEAD_BYTES]
    if head[4:8] == b"ftyp":
        return _of_media(head)
    if head.startswith(b"PK\x03\x04") and head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy"):
        return NUMPY_ARCHIVE
    for at, signature, kind in _SIGNATURES:
        if head.startswith(signature, at):
            return kind
    if head and not any(head):
        return Kind("zero bytes", _FETCH)
    return None if _TEXT_IMAGES.match(head) else _of_text(head)


def _of_media(head: bytes) -> Kind | None:
    """Return the kind of a file of ISO's base media format, by its brands."""
    brands = head[8 : int.from_bytes(head[:4])]
    major = brands[:4]
    if major in (b"avif", b"avis") or (major in _HEIF_BRANDS and b"avif" in brands):
        Image.init()
        return None if "AVIF" in Image.OPEN else Kind("AVIF", "Pillow 11.3 and later read it", is_image=True)
    if major in _HEIF_BRANDS:
        return HEIC
    return Kind("camera raw (Canon CR3)", _RAW, is_image=True) if major == b"crx " else _VIDEO


def _of_text(head: bytes) -> Kind | None:
    """Return the kind of text, in UTF-8, UTF-16 or an 8-bit code; None where it is no text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _TEXT
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # which may end within a character
    except UnicodeDecodeError:
        text = head.decode("latin-1")
        if sum(character > "\x7f" for character in text) * 4 > len(text):
            return None
    text = text.lstrip()
    if not text or re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        return None
    return next((kind for pattern, kind in _TEXTS if re.match(pattern, text)), _TEXT)


def image_format(head: bytes) -> str | None:
    """Return the format of an image by a file's first ``HEAD_BYTES``, one that can be read or not; None: no image."""
    if kind := recognise(head):
        return kind.name if kind.is_image else None
    Image.init()
    prefix = head[:16].ljust(16, b"\0")  # what Pillow itself looks at
    return next((name for name, (_, accept) in Image.OPEN.items() if head and accept and accept(prefix)), None)


_COMPRESSIONS = {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP"}
_COMPRESSIONS |= {50002: "JPEG XL", 52546: "JPEG XL", 65535: "camera raw"}


def describe_tiff(content: bytes) -> str | None:
    """Return what a TIFF's tags say of its pixels; None where it is no TIFF, or damaged."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415  (only such files need it)

    with contextlib.suppress(Exception):  # Pillow's parser raises anything for damaged tags
        tags = ImageFileDirectory_v2(content[: 16 if b"+" in content[:4] else 8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        if preview := tiff_preview(tags):
            return preview
        bits, sample, code = (tags.get(tag, (1,)) for tag in (258, 339, 259))
        numbers = {2: "signed", 3: "floating-point"}.get(sample[0], "unsigned")
        packed = "" if code in (1, (1,)) else f", compressed by {_COMPRESSIONS.get(code, f'method {code}')}"
        return f"a TIFF of {bits[0]}-bit {numbers} values in {tags.get(277, 1)} band(s){packed}"
    return None


def tiff_preview(tags: Mapping[int, Any]) -> str | None:
    """Return what a TIFF is whose first image is no photograph to learn from, but a camera raw file's preview."""
    if 50706 in tags or tags.get(254, 0) & 1 or tags.get(262) in (32803, 34892):  # DNG's version; reduced; CFA, linear
        name = "DNG" if 50706 in tags else str(tags.get(271, "of some maker")).strip()
        return f"camera raw ({name}), of which Pillow reads a preview at best: {_RAW}"
    return None
