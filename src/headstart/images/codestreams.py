"""What JPEG, JPEG-LS, JPEG 2000 and LERC code streams say of themselves, so that no decoder allocates more.

Sources: ITU-T T.81 annex B, T.87 annex C, T.800 annex A; Esri's `Lerc2.h <https://github.com/Esri/lerc>`_.
"""

from typing import NamedTuple

from headstart.images.decode import BadImageError


class CodeStream(NamedTuple):
    """Size in pixels, and the bits of each component, those of signed values negative."""

    width: int
    height: int
    bits: tuple[int, ...]


def jpeg_2000(content: bytes) -> CodeStream:
    """Read the header of the first JPEG 2000 code stream of a file; raises BadImageError if there is none."""
    at = content.find(b"\xff\x4f\xff\x51")
    header = content[at : at + 42]
    if at < 0 or len(header) < 42:
        raise BadImageError("damaged: JPEG 2000 without a header")
    right, bottom, left, top = (int.from_bytes(header[i : i + 4]) for i in (8, 12, 16, 20))
    sizes = content[at + 42 : at + 42 + 3 * int.from_bytes(header[40:42]) : 3]
    return CodeStream(
        right - left, bottom - top, tuple(-(size & 127) - 1 if size & 128 else size + 1 for size in sizes)
    )


def jpeg(content: bytes) -> CodeStream:
    """Read the header of a JPEG or JPEG-LS code stream; raises BadImageError if there is none."""
    at = 2
    while content[:2] == b"\xff\xd8" and at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if marker == 0xFF:  # filling
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = (int.from_bytes(content[i : i + 2]) for i in (at + 5, at + 7))
            return CodeStream(width, height, (content[at + 4],) * content[at + 9])
        else:
            at += 2 + length
    raise BadImageError("damaged: JPEG without a header")


def lerc(content: bytes) -> CodeStream:
    """Read the header of a LERC code stream, whose bits are not looked at; raises BadImageError if there is none."""
    version = int.from_bytes(content[6:10], "little")
    at = 14 if version >= 3 else 10  # after a checksum
    if content[:6] != b"Lerc2 " or len(content) < at + 12:
        raise BadImageError("LERC that is damaged, of version 1, or compressed again: save it with Deflate")
    height, width, bands = (int.from_bytes(content[at + i : at + i + 4], "little") for i in (0, 4, 8))
    return CodeStream(width, height, (0,) * min(bands if version >= 4 else 1, 2**16))
