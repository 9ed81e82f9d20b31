"""Pictures: from a file's bytes, or from a data set's array, to the resized RGB pixels that are stored."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from headstart.ground.shards import Row

# Longest side over shortest: the stored row of a longer strip is out of proportion to the square that a model sees.
MAX_ASPECT_RATIO = 20
# Short side, or up to twice it, to which a picture is reduced before it is hashed: a bit or two of the 64 come out
# otherwise, in a quarter of the time.
HASHED_SIDE = 64
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class BadImageError(Exception):
    """A file that is no usable picture; the message is the reason."""


class LabelledImage(NamedTuple):
    """A picture of a data set that has no files, and the label that stands beside it."""

    image: Image.Image
    label: str


class Look(NamedTuple):
    """What decoding tells of a picture, after EXIF orientation and before the resize.

    Attributes:
        width: in pixels.
        height: in pixels.
        phash: its perceptual hash, 64 bits as 16 hex digits; nearly the same where pictures look nearly the same.
        contrast: standard deviation of its grey levels, 0 to 127.5, details below a 64th of the short side averaged.
    """

    width: int
    height: int
    phash: str
    contrast: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture.

    Attributes:
        source: its name in the source.
        problem: why it is bad; None where it is good, and only then the rest is set.
        label: where only reading tells it.
        sha256: of the file's bytes, or of mode, size and pixels where there is no file.
        look: what decoding told.
        training: whether it is stored for random crops, not for evaluation.
        decoded: whether this run decoded it.
        row: where it is stored.
    """

    source: str
    problem: str | None = None
    label: str | None = None
    sha256: bytes = b""
    look: Look | None = None
    training: bool = False
    decoded: bool = False
    row: Row | None = None


@dataclass(frozen=True)
class TrainingResize:
    """Makes a picture's short side at most ``side`` pixels, its aspect kept; nothing is enlarged.

    Attributes:
        side: None leaves every picture as it is.
        interpolation: as timm and torchvision name it.
    """

    side: int | None
    interpolation: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """Resize by Pillow."""
        if self.side is None or min(image.size) <= self.side:
            return image
        resized: Image.Image = resize(image, [self.side], InterpolationMode(self.interpolation))
        return resized


def look_of(image: Image.Image) -> Look:
    """Look at an RGB image."""
    grey = image.reduce(max(1, min(image.size) // HASHED_SIDE)).convert("L")
    return Look(*image.size, str(imagehash.phash(grey)), round(float(np.asarray(grey).std()), 2))


def content_sha256(content: bytes | LabelledImage) -> bytes:
    """Hash what a source gives for a picture."""
    return hashlib.sha256(content).digest() if isinstance(content, bytes) else _image_sha256(content.image)


def to_image(content: bytes | LabelledImage) -> Image.Image:
    """Make what a source gives RGB; raises BadImageError."""
    return decode(content) if isinstance(content, bytes) else to_rgb(content.image)


def size_of(content: bytes | LabelledImage) -> tuple[int, int]:
    """Give width and height before the EXIF orientation, a file's from its header; raises BadImageError."""
    if isinstance(content, LabelledImage):
        return content.image.size
    with _explaining():
        return _opened(content).size


def decode(content: bytes) -> Image.Image:
    """Decode a file's first frame to RGB, upright as its EXIF orientation says.

    Raises:
        BadImageError: empty, not a picture, truncated, damaged, too large or too long a strip.
    """
    with _explaining():
        image = _opened(content)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn what Pillow raises into reasons."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it can read after all: odd metadata, up to twice MAX_IMAGE_PIXELS.
            warnings.simplefilter("ignore")
            yield
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImageError(f"decompression bomb: {error}") from None
    except Exception as error:  # noqa: BLE001  (on damaged files Pillow's decoders raise anything, from OSError to IndexError)
        raise BadImageError(f"damaged: {error or type(error).__name__}") from None


def _opened(content: bytes) -> Image.Image:
    """Read the header; what it alone rules out is not decoded."""
    if not content:
        raise BadImageError("the file is empty")
    image = Image.open(io.BytesIO(content))
    if image.format == "EPS":
        raise BadImageError("a PostScript program, not a picture")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(f"{image.width} x {image.height} pixels: longer than {MAX_ASPECT_RATIO} times its width")
    return image


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
