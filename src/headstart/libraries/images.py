"""Pictures: from a file's bytes, or from a data set's array, to the resized RGB pixels that are stored."""

import hashlib
import io
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Longest side over shortest: the stored row of a longer strip is out of proportion to the square that a model sees.
MAX_ASPECT_RATIO = 20
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class BadImageError(Exception):
    """A file that is no usable picture; the message is the reason."""


class LabelledImage(NamedTuple):
    """A picture of a data set that has no files, and the label that stands beside it."""

    image: Image.Image
    label: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture.

    Attributes:
        source: its name in the source.
        problem: why it is bad; None where it is good, and only then the rest is set.
        label: where only reading tells it.
        sha256: of the file's bytes, or of mode, size and pixels where there is no file.
        width: in pixels, after EXIF orientation, before the resize.
        height: likewise.
        pixels: uint8 (stored height, stored width, 3); None where the earlier rows have it.
    """

    source: str
    problem: str | None = None
    label: str | None = None
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    pixels: NDArray[np.uint8] | None = None

    def stored(self) -> bytes:
        """Give the row as it is stored."""
        assert self.pixels is not None
        return self.pixels.tobytes()


@dataclass(frozen=True)
class Decoder:
    """Decodes chunks of pictures; picklable, so that worker processes can have it.

    Attributes:
        read: gives a file's bytes, or a labelled image, by its source name; raises BadImageError.
        resize: the resize of an RGB image.
        earlier: sha256 digests of pictures that need no decoding.
    """

    read: Callable[[str], bytes | LabelledImage]
    resize: Callable[[Image.Image], Image.Image]
    earlier: Container[bytes]

    def __call__(self, sources: list[str]) -> list[Outcome]:
        """Decode pictures; a bad one is an outcome with a problem, never an exception."""
        return [self._decode(source) for source in sources]

    def _decode(self, source: str) -> Outcome:
        try:
            content = self.read(source)
            if isinstance(content, bytes):
                label, digest = None, hashlib.sha256(content).digest()
                if digest in self.earlier:
                    return Outcome(source, sha256=digest)
                image = decode(content)
            else:
                label, digest = content.label, _image_sha256(content.image)
                if digest in self.earlier:
                    return Outcome(source, label=label, sha256=digest)
                image = to_rgb(content.image)
        except BadImageError as bad:
            return Outcome(source, problem=str(bad))
        pixels = np.asarray(self.resize(image), np.uint8)
        return Outcome(source, None, label, digest, image.width, image.height, pixels)


def decode(content: bytes) -> Image.Image:
    """Decode a file's first frame to RGB, upright as its EXIF orientation says.

    Raises:
        BadImageError: empty, not a picture, truncated, damaged, too large or too long a strip.
    """
    if not content:
        raise BadImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it can read after all: odd metadata, up to twice MAX_IMAGE_PIXELS.
            warnings.simplefilter("ignore")
            return to_rgb(_loaded(io.BytesIO(content)))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImageError(f"decompression bomb: {error}") from None
    except Exception as error:  # noqa: BLE001  (on damaged files Pillow's decoders raise anything, from OSError to IndexError)
        raise BadImageError(f"damaged: {error or type(error).__name__}") from None


def _loaded(file: io.BytesIO) -> Image.Image:
    """Read and turn upright; what the header alone rules out is not decoded."""
    image = Image.open(file)
    if image.format == "EPS":
        raise BadImageError("a PostScript program, not a picture")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(f"{image.width} x {image.height} pixels: longer than {MAX_ASPECT_RATIO} times its width")
    image.load()
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a picture of any mode into RGB: 16-bit grey is scaled, transparency is put on white.

    Raises:
        BadImageError: floating-point or 32-bit pixels, whose range nobody knows.
    """
    if image.mode in SIXTEEN_BIT_MODES:
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise BadImageError("floating-point pixels: which value is white is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        # Pillow knows no way from La, greys multiplied with alpha, but over LA.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """Scale greys 0..65535 to 0..255 (Pillow's own conversion clips them at 255)."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError(f"32-bit pixels from {values.min()} to {values.max()}: save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _image_sha256(image: Image.Image) -> bytes:
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()
