"""A decoder for pydicom: JPEG of 12 and 16 bits and lossless JPEG, by imagecodecs.

pydicom looks up these names in the module of a decoder:
https://pydicom.github.io/pydicom/stable/guides/plugin_table.html
"""

from typing import TYPE_CHECKING

import imagecodecs
from pydicom import uid

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

SYNTAXES = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Return whether a transfer syntax is decoded here."""
    return syntax in SYNTAXES


def decode_frame(content: bytes, runner: "DecodeRunner") -> bytearray:
    """Return a frame's values, (rows, columns, samples), in native order."""
    values = imagecodecs.jpeg_decode(content)
    runner.set_option("bits_allocated", 8 * values.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(values.tobytes())
