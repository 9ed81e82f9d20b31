"""Images: from a file's bytes, or from a data set's array, to the resized RGB pixels that are stored."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from headstart.data.shards import ShardEntry
from headstart.images.decode import decode, header_size, to_rgb

# Short side, or up to twice it, to which an image is reduced before it is hashed: a bit or two of the 64 come out
# otherwise, in a quarter of the time.
HASHED_SIDE = 64


class LabelledImage(NamedTuple):
    """An image of a data set that has no files, and the label that stands beside it."""

    image: Image.Image
    label: str


class ImageInfo(NamedTuple):
    """What decoding tells of an image, after EXIF orientation and before the resize.

    Attributes:
        width: in pixels.
        height: in pixels.
        phash: its perceptual hash, 64 bits as 16 hex digits; nearly the same where images look nearly the same.
        contrast: standard deviation of its grey levels, 0 to 127.5, details below a 64th of the short side averaged.
    """

    width: int
    height: int
    phash: str
    contrast: float


@dataclass(frozen=True, slots=True)
class PackedImage:
    """What became of one image.

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
    look: ImageInfo | None = None
    training: bool = False
    decoded: bool = False
    row: ShardEntry | None = None


@dataclass(frozen=True)
class TrainingResize:
    """Makes an image's short side at most ``side`` pixels, its aspect kept; nothing is enlarged.

    Attributes:
        side: None leaves every image as it is.
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


def info_of(image: Image.Image) -> ImageInfo:
    """Look at an RGB image."""
    grey = image.reduce(max(1, min(image.size) // HASHED_SIDE)).convert("L")
    return ImageInfo(*image.size, str(imagehash.phash(grey)), round(float(np.asarray(grey).std()), 2))


def content_sha256(content: bytes | LabelledImage) -> bytes:
    """Hash what a source gives for an image."""
    return hashlib.sha256(content).digest() if isinstance(content, bytes) else _image_sha256(content.image)


def to_image(content: bytes | LabelledImage) -> Image.Image:
    """Make what a source gives RGB; raises BadImageError."""
    return decode(content) if isinstance(content, bytes) else to_rgb(content.image)


def size_of(content: bytes | LabelledImage) -> tuple[int, int]:
    """Return width and height before the EXIF orientation, a file's from its header; raises BadImageError."""
    if isinstance(content, LabelledImage):
        return content.image.size
    return header_size(content)


def _image_sha256(image: Image.Image) -> bytes:
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()
