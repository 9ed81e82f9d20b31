"""What is known of one image on its way into the store: its content's hash, its appearance, its training size."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from headstart.data.shards import ShardEntry
from headstart.images.arrays import ArrayImage, ArrayInfo, describe_array, fitted, read_array
from headstart.images.bands import PixelLayout, Pixels
from headstart.images.decode import DEFAULT_LIMITS, BadImageError, ImageLimits, Note, decode, header_size, to_rgb
from headstart.images.preprocess import INTERPOLATIONS, resize_bands

# An image is reduced until its short side is this long, or up to twice as long, before it is hashed: a bit or two of
# the 64 differ from the whole image's hash, in a quarter of the time.
HASHED_SIDE = 64


class LabelledImage(NamedTuple):
    """An image of a data set that has no files, with its label."""

    image: Image.Image
    label: str


SourceContent = bytes | tuple[bytes, ...] | LabelledImage
"""What a source returns for an image: the bytes of its file, those of several files with its bands, or itself."""


class ImageInfo(NamedTuple):
    """Size and appearance of an image, after its EXIF orientation and before any resize.

    ``phash``, 64 bits as 16 hex digits, is nearly equal for images that look nearly the same. ``contrast`` is the
    standard deviation of the grey levels, 0 to 127.5, after details below a 64th of the short side are averaged out.
    """

    width: int
    height: int
    phash: str
    contrast: float


class PackedImage(NamedTuple):
    """The result of packing one image: of a bad one its name in the source and the problem alone.

    The label is set if only reading the image reveals it; ``sha256`` are hex digits. What is not ``for_training`` is
    stored at the size for evaluation; what is not ``decoded`` was reused as an earlier run packed it. ``note`` is as
    ``decode`` leaves it.
    """

    source: str
    label: str | None = None
    sha256: str = ""
    info: ImageInfo | None = None
    for_training: bool = False
    decoded: bool = False
    entry: ShardEntry | None = None
    problem: str | None = None
    note: Note | None = None


@dataclass(frozen=True)
class TrainingResize:
    """Reduce an image until its short side is at most ``side`` pixels, keeping its aspect; None: never.

    Sizes and pixels are those of torchvision's ``Resize``, which would also enlarge.
    """

    side: int | None
    interpolation: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image itself if it is small enough."""
        size = self._size(*image.size)
        return image if size == image.size else image.resize(size, INTERPOLATIONS[self.interpolation])

    def of_bands(self, pixels: Pixels) -> Pixels:
        """Reduce pixels (height, width, bands) likewise."""
        return resize_bands(pixels, self._size(pixels.shape[1], pixels.shape[0]), self.interpolation)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self.side is None or min(width, height) <= self.side:
            return width, height
        longer = int(self.side * max(width, height) / min(width, height))
        return (self.side, longer) if width <= height else (longer, self.side)


def info_of(image: Image.Image) -> ImageInfo:
    """Compute size and appearance of an RGB image."""
    grey = image.reduce(max(1, min(image.size) // HASHED_SIDE)).convert("L")
    return ImageInfo(*image.size, str(imagehash.phash(grey)), round(float(np.asarray(grey).std()), 2))


def content_sha256(content: SourceContent) -> str:
    """Hash what a source returns for an image, the file's bytes, or the mode, size and pixels; return hex digits.

    Of several files, the hashes of each are hashed in their order.
    """
    if isinstance(content, LabelledImage):
        image = content.image
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    if not isinstance(content, bytes):
        content = b"".join(hashlib.sha256(each).digest() for each in content)
    return hashlib.sha256(content).hexdigest()


def to_image(content: SourceContent, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the RGB image of what a source returns; raises BadImageError."""
    if isinstance(content, LabelledImage):
        return to_rgb(content.image)
    if not isinstance(content, bytes):
        describe_array(content, limits)  # which says what is wrong with a file
        raise BadImageError("its bands lie in several files, and are no RGB: set prepare.channels to their number")
    return decode(content, limits)


def to_pixels(content: SourceContent, layout: PixelLayout, limits: ImageLimits) -> ArrayImage:
    """Return the pixels, with a note, of what a source returns; raises BadImageError where they have another layout."""
    if isinstance(content, LabelledImage):
        return ArrayImage(fitted(np.atleast_3d(np.asarray(content.image)), layout))
    return read_array(content, layout, limits)


def describe(content: SourceContent, limits: ImageLimits = DEFAULT_LIMITS) -> ArrayInfo:
    """Return size and bands, a file's from its header where that has them; raises BadImageError."""
    if isinstance(content, LabelledImage):
        bands = len(content.image.getbands())
        return ArrayInfo(*content.image.size, bands, "uint8", 1, plain=True)
    return describe_array(content, limits)


def size_of(content: SourceContent, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return width and height without the EXIF orientation, a file's from its header; raises BadImageError."""
    if isinstance(content, LabelledImage):
        return content.image.size
    return header_size(content if isinstance(content, bytes) else content[0], limits)
